"""Gates on the channels of the residual stream at every block's input, for example-tied dropout.

A model trained with it is evaluated with its memory channels off. A stock GPT-2 cannot express that in its weights:
within a block the second LayerNorm sees what the attention has just written to the memory channels, which are zeroed
only at the next block's input, and never after the last block. So the settings are saved in the model's config, and
`load_model` restores the gate. Plain `from_pretrained` opens the model with all channels on, for which it was never
trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tinymem.models.edit import Changes, Extent, Weights

CONFIG_KEY = "example_tied_dropout"


def gate_block_inputs(model, gate: Callable[[], torch.Tensor]) -> list[Any]:
    """Multiply the input (rows, T, width) of every block by gate(), broadcast, in all later forward passes.

    Return the handles of its hooks.
    """

    def hook(block, arguments: tuple) -> tuple:
        hidden, *others = arguments
        return (hidden * gate().to(hidden), *others)

    return [block.register_forward_pre_hook(hook) for block in model.transformer.h]


def shared_channels(width: int, p_fixed: float) -> int:
    """Return the number of channels that all examples share; they are the first ones."""
    return round(p_fixed * width)


def evaluation_gate(width: int, p_fixed: float, p_mem: float) -> torch.Tensor:
    """Return the gate at evaluation, float32 (width,): memory channels 0, shared ones (p_fixed + p_mem) / p_fixed.

    Maini et al. 2023, arXiv 2307.09542, section 5; the scale is theirs.
    """
    gate = torch.zeros(width)
    gate[: shared_channels(width, p_fixed)] = (p_fixed + p_mem) / p_fixed
    return gate


def mark(model, p_fixed: float, p_mem: float) -> None:
    """Record in the config that this model needs its gate."""
    setattr(model.config, CONFIG_KEY, {"p_fixed": p_fixed, "p_mem": p_mem})


def is_gated(model) -> bool:
    """Return whether the model was trained with example-tied dropout."""
    return getattr(model.config, CONFIG_KEY, None) is not None


def gate_of(model) -> torch.Tensor:
    """Return the evaluation gate of a model that needs one, float32 (width,)."""
    return evaluation_gate(model.config.n_embd, **getattr(model.config, CONFIG_KEY))


def restore_gate(model) -> None:
    """Add the evaluation gate to a model that was opened from files, if it needs one."""
    if is_gated(model):
        gate = gate_of(model)
        gate_block_inputs(model, lambda: gate)


@dataclass(frozen=True)
class Gated:
    """An edit that gives parameters new values and gates the blocks' inputs.

    So a model trained with example-tied dropout is an edit of one that was not. weights: the new values. gate: that of
    the channels, (width,).
    """

    weights: Weights
    gate: torch.Tensor

    def apply(self, model, changes: Changes) -> None:
        self.weights.apply(model, changes)
        for handle in gate_block_inputs(model, lambda: self.gate):
            changes.hook(handle)

    def extent(self, model) -> Extent:
        return self.weights.extent(model)
