"""Memorization sinks (Ghosal et al. 2025, arXiv 2507.09937): neurons for memorizing, deleted after training.

The last neurons of every MLP form a pool. A sequence's example id decides which neurons of the pool it may use, in all
layers; all sequences use the neurons before the pool. What is specific to a sequence can be learned in its own neurons,
and is deleted with them. The pool is off whenever the model is measured, and saved weights do not contain it: a
checkpoint is an ordinary model. SINKS in the checkpoint's folder says which neurons belong to which example id, a
ground truth for localization. The training state keeps their weights (`tinymem.training.checkpoint.trained_weights`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tinymem.errors import UserError, reading
from tinymem.inputs import check_file
from tinymem.models.adapter import MLP, find_mlps
from tinymem.models.edit import Zeros
from tinymem.options import option, settings
from tinymem.regularizers.hashing import random_bits
from tinymem.regularizers.protocol import Regularizer

SINKS = "sinks.safetensors"


@settings
class Settings:
    """Regularizer: memorization sinks (Ghosal et al. 2025)"""

    memorization_sinks: bool = option(False, "give every example MLP neurons to memorize in, deleted after training")
    sinks_shared: float = option(0.7, "share of an MLP's neurons that all examples use", above=0.0, below=1.0)
    sinks_active: float = option(0.3, "share of the other neurons that each example uses", above=0.0, high=1.0)
    sinks_disjoint: bool = option(
        False, "divide the other neurons into disjoint slices of that share; each example uses one slice"
    )


@dataclass(frozen=True)
class Pool:
    """The neurons first .. first + size - 1 of every MLP.

    active     share of them that an example uses
    disjoint   whether they are divided into slices
    """

    first: int
    size: int
    active: float
    disjoint: bool
    seed: int

    @property
    def slice_size(self) -> int:
        """The neurons of a slice."""
        return round(self.active * self.size)

    def units(self, ids: torch.Tensor) -> torch.Tensor:
        """Return which neurons of the pool each example uses, bool (rows, size). ids: int64 (rows,).

        Each is used with probability `active`. If `disjoint`, example i uses slice i modulo the number of slices, so
        examples with consecutive ids use different ones. The last neurons may belong to no slice.
        """
        units = torch.arange(self.size, device=ids.device)
        if self.disjoint:
            return units // self.slice_size == (ids % (self.size // self.slice_size))[:, None]
        return random_bits(ids, self.seed, units) < round(self.active * 2**32)


def build(model, settings: Settings, seed: int) -> Regularizer:
    """Gate the neurons of every MLP. Raise UserError for shares that round to no neuron, or to no pool."""
    mlps = find_mlps(model)
    pool = _pool(mlps[0].inner_dim, settings, seed)
    off = torch.zeros(pool.size, device=model.device)
    training, seen = off, list[torch.Tensor]()
    state = {"ids": torch.zeros((), dtype=torch.long, device=model.device)}  # every id seen so far is below it

    def before_forward(ids: torch.Tensor) -> None:
        nonlocal training
        ids = ids.to(model.device)
        training = pool.units(ids).to(model.dtype)[:, None, :]
        seen.append(ids.max() + 1)

    def after_backward() -> None:
        state["ids"].copy_(torch.stack([state["ids"], *seen]).max())
        seen.clear()

    _gate_pool(model, mlps, pool.first, lambda: training if model.training else off)
    return Regularizer(
        before_forward=before_forward,
        after_backward=after_backward,
        state=state,
        deleted=Zeros(_pool_masks(mlps, pool)),
        write=lambda folder: write_units(folder / SINKS, pool, int(state["ids"])),
    )


def _pool(inner: int, settings: Settings, seed: int) -> Pool:
    first = round(settings.sinks_shared * inner)
    if not 0 < first < inner:
        what = "none" if first == 0 else "all"
        raise UserError(f"--sinks_shared {settings.sinks_shared}: rounds to {what} of {inner} neurons")
    pool = Pool(first, inner - first, settings.sinks_active, settings.sinks_disjoint, seed)
    if not pool.slice_size:
        raise UserError(f"--sinks_active {settings.sinks_active}: rounds to none of {pool.size} neurons; raise it")
    if pool.disjoint and pool.size < 2 * pool.slice_size:
        raise UserError(f"--sinks_active {settings.sinks_active}: {pool.size} neurons have no two slices of that "
                        "share, as --sinks_disjoint needs; lower it")  # fmt: skip
    return pool


def _gate_pool(model, mlps: list[MLP], first: int, gate: Callable[[], torch.Tensor]) -> None:
    """Multiply the input (rows, T, neurons) of each ReLU, from neuron `first` on, by gate() in later forward passes.

    This is done in place and without autograd: at 0 a ReLU has value 0 and gradient 0, so a neuron that is off learns
    nothing. Raise ValueError for another activation function.
    """
    if model.config.activation_function != "relu":
        raise ValueError(f"memorization sinks need ReLU neurons, not {model.config.activation_function}")

    def hook(module, inputs: tuple, output: torch.Tensor) -> None:
        output.detach()[..., first:].mul_(gate().to(output))

    for mlp in mlps:
        model.get_submodule(mlp.inputs[0].name.rpartition(".")[0]).register_forward_hook(hook)


def _pool_masks(mlps: list[MLP], pool: Pool) -> dict[str, torch.Tensor]:
    """Return masks of the pool's rows of W_in, entries of b_in and columns of W_out."""
    masks = {}
    for mlp in mlps:
        for weight in (*mlp.inputs, *mlp.biases, mlp.output):
            mask = torch.zeros(weight.view().shape, dtype=torch.bool)
            (mask if weight is not mlp.output else mask.T)[pool.first :] = True
            masks[weight.name] = mask
    return masks


def write_units(path: Path, pool: Pool, count: int) -> None:
    """Write which neurons of the pool the examples 0 .. count - 1 use."""
    from safetensors.torch import save_file

    save_file({"units": pool.units(torch.arange(count))}, path, metadata={"pool": json.dumps(vars(pool))})


def read_units(folder: str | Path) -> tuple[torch.Tensor, int]:
    """Return which neurons of the pool each example id uses, bool (ids, pool), and the pool's first neuron.

    They are the same in every layer. Raise UserError if the folder is not that of a checkpoint trained with sinks.
    """
    from safetensors import safe_open

    path = Path(folder) / SINKS
    if not path.exists():
        raise UserError(f"{folder}: not a checkpoint of a training with --memorization_sinks (no {SINKS} in it)")
    check_file(path, share=float("inf"))
    with reading(path, "damaged ({why}); copy the folder again, or train the model again"):
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("units"), int(json.loads(file.metadata()["pool"])["first"])
