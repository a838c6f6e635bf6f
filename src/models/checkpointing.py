"""Gradient checkpointing: a block keeps only its input for the backward pass and runs again when that needs the rest.

transformers has a switch for it that works in training mode only, where dropout is on too; unlearning methods need the
model as it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from tinymem.models.adapter import find_blocks


@contextmanager
def checkpointed(model, enabled: bool = True) -> Iterator[None]:
    """Within the block (unless not `enabled`) gradients take one more forward pass and far less memory.

    Same results: the model must be in evaluation mode, so that a block does the same when it runs again. Backward
    passes must be within the block too.
    """
    blocks = list(find_blocks(model)[1]) if enabled else []
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(_checkpoint, block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before):
            del block.forward
            if forward is not None:
                block.forward = forward


def _checkpoint(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
