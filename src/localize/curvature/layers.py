"""The matrices that a curvature method edits: those of the chosen layers' MLPs."""

from __future__ import annotations

from typing import Any

from tinymem.errors import UserError
from tinymem.models.adapter import MLP, Weight, find_mlps
from tinymem.options import option, settings

LAST = {"last": 1, "last_two": 2}
IDLE = 1.0  # the rho that changes nothing; a part of each method with a rho


@settings
class LayerSettings:
    """The matrices to edit"""

    layers: str = option(
        "all", "layers to edit: all, last, last_two, or their numbers from 0, such as 0,3", large="last_two"
    )
    projections: str = option(
        "both",
        "matrices of an MLP to edit: those into the neurons, out of them, or both",
        choices=("in", "out", "both"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", normalized_layers(self.layers))  # so that 3,0 and 0,3 are the same run


def rho_option(kept: str) -> Any:
    """Return the option for the share to keep, a strength. kept: what it is a share of."""
    return option(
        (0.6, 0.8, 0.9),
        f"share of the {kept} to keep; smaller is stronger, 1 changes nothing",
        above=0.0, high=1.0, strength=True, grid=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99), small=(0.8, 0.9),
    )  # fmt: skip


def normalized_layers(text: str) -> str:
    """Return layers as records name them: numbers ascending, each once. Raise UserError for text without layers."""
    if text in ("all", *LAST):
        return text
    names = text.split(",")
    if not all(name.strip().isdecimal() for name in names):
        raise UserError(f"--layers {text}: must be all, last, last_two, or numbers of layers such as 0,3")
    return ",".join(map(str, sorted({int(name) for name in names})))


def chosen_weights(model, hp: LayerSettings) -> list[Weight]:
    """Return the chosen MLP matrices, first layer first. Raise UserError for a layer that the model does not have."""
    mlps = find_mlps(model)
    return [
        weight for layer in chosen_layers(hp.layers, len(mlps)) for weight in _matrices(mlps[layer], hp.projections)
    ]


def chosen_layers(text: str, count: int) -> list[int]:
    """Return the numbers of the layers of a setting, ascending. Raise UserError for one that the model does not have.

    text: as from `normalized_layers`. count: layers of the model.
    """
    if text == "all":
        return list(range(count))
    if text in LAST:
        return list(range(max(0, count - LAST[text]), count))
    numbers = [int(name) for name in text.split(",")]
    if numbers[-1] >= count:
        raise UserError(f"--layers {text}: there is no layer {numbers[-1]}; the model has layers 0 to {count - 1}")
    return numbers


def _matrices(mlp: MLP, projections: str) -> tuple[Weight, ...]:
    return {"in": mlp.inputs, "out": (mlp.output,), "both": mlp.matrices}[projections]
