"""Activation patching: run a model with some hidden states of another one in place of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from tinymem.models.adapter import find_blocks


@contextmanager
def kept_states(model, layers: Iterable[int] | None = None) -> Iterator[dict[int, torch.Tensor]]:
    """Yield what each forward pass within the block fills: layer -> the hidden states after it, (rows, T, width).

    layers: those to keep, from 0; None: all. The states that models return themselves are others: the last of them has
    passed the final norm.
    """
    _, blocks = find_blocks(model)
    states: dict[int, torch.Tensor] = {}

    def keep(layer: int, block: Any, inputs: Any, output: Any) -> None:
        states[layer] = states_of(output)

    chosen = range(len(blocks)) if layers is None else layers
    hooks = [blocks[layer].register_forward_hook(partial(keep, layer)) for layer in chosen]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def patched(model, layer: int, states: torch.Tensor, places: torch.Tensor) -> Iterator[None]:
    """Replace the hidden states after a block by `states` in the forward passes within the block.

    states: (rows, T, width), of the same rows. places: which are replaced, bool (rows, T).
    """
    _, blocks = find_blocks(model)

    def replace(block: Any, inputs: Any, output: Any) -> Any:
        own = states_of(output)
        mixed = torch.where(places[..., None].to(own.device), states.to(own.device, own.dtype), own)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    hook = blocks[layer].register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def states_of(output: Any) -> torch.Tensor:
    """Return the hidden states among what a block returns; some architectures' blocks return more, in a tuple."""
    return output[0] if isinstance(output, tuple) else output
