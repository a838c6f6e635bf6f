"""Example-tied dropout (Maini et al. 2023, arXiv 2307.09542): every example has its own channels for memorizing."""

from __future__ import annotations

import torch

from tinymem.errors import UserError
from tinymem.models.channel_gate import evaluation_gate, gate_block_inputs, mark, shared_channels
from tinymem.options import option, settings
from tinymem.regularizers.hashing import random_bits
from tinymem.regularizers.protocol import Regularizer


@settings
class Settings:
    """Regularizer: example-tied dropout (Maini et al. 2023)"""

    example_tied_dropout: bool = option(False, "give every example its own memory channels, off at evaluation")
    p_fixed: float = option(0.2, "share of the channels that all examples use", above=0.0, high=1.0)
    p_mem: float = option(0.1, "share of the other channels that each example uses", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        if self.p_fixed + self.p_mem > 1:
            raise UserError(f"--p_mem {self.p_mem}: must be <= 1 - p_fixed, and --p_fixed is {self.p_fixed}")


def build(model, settings: Settings, seed: int) -> Regularizer:
    """Mask the residual stream at every block's input, with one mask for all blocks.

    So the values that an example writes to its memory channels in one block are available in the next. An example's
    memory channels are each kept with probability p_mem, as in the code of Maini et al. and of the study. In evaluation
    mode the gate of `tinymem.models.channel_gate` is on instead. Raise UserError if p_fixed leaves no shared channel.
    """
    width = model.config.n_embd
    if not shared_channels(width, settings.p_fixed):
        raise UserError(f"--p_fixed {settings.p_fixed}: rounds to none of --n_embd {width} channels; raise it")
    mark(model, settings.p_fixed, settings.p_mem)
    evaluation = evaluation_gate(width, settings.p_fixed, settings.p_mem).to(model.device)
    training = evaluation

    def before_forward(ids: torch.Tensor) -> None:
        nonlocal training
        training = example_masks(ids, seed, width, settings).to(model.dtype)[:, None, :]

    gate_block_inputs(model, lambda: training if model.training else evaluation)
    return Regularizer(before_forward=before_forward)


def example_masks(ids: torch.Tensor, seed: int, width: int, settings: Settings) -> torch.Tensor:
    """Return which channels each example uses, bool (rows, width). ids: int64 (rows,).

    The masks depend on seed and id alone: they are the same in every epoch, process and device.
    """
    channels = torch.arange(width, device=ids.device)
    own = random_bits(ids, seed, channels) < round(settings.p_mem * 2**32)
    return own | (channels < shared_channels(width, settings.p_fixed))
