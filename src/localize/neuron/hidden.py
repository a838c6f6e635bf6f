"""The neurons of a running model: read them, change them, and run only the modules that a change affects.

A neuron is one entry of the input of an MLP's W_out (`MLP.down`). Everything here goes through hooks on the stock
model, so that no architecture is written twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import MLP
from tinymem.models.losses import loss_mask
from tinymem.models.windows import attention_windows, inside


def measured_positions(task: UnlearningTask) -> torch.Tensor:
    """Return which positions of the forget set predict a measured token, bool (U, T - 1).

    Position t predicts token t + 1. The measured tokens run from the end of each sequence's prompt to the end of the
    sequence, so the positions are prompt_end - 1 .. T - 2. Ignored tokens are left out.
    """
    predicted = torch.arange(1, task.forget.planted.shape[1])
    window = predicted >= task.forget.prompt_end[:, None]
    return window & loss_mask(task.forget.planted, task.ignored_token)


@contextmanager
def on_neurons(
    mlps: list[MLP], length: int, function: Callable[[int, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Call function(layer, neurons) for each MLP in every forward pass on rows of `length` tokens within the block.

    The pass continues with the returned tensor, or unchanged after None. neurons: (rows, length, inner_dim), also for
    models such as OPT that join rows and positions in one dimension.
    """

    def hook(layer: int) -> Callable:
        def call(module, inputs):
            changed = function(layer, inputs[0].reshape(-1, length, inputs[0].shape[-1]))
            return None if changed is None else changed.reshape(inputs[0].shape)

        return call

    handles = [mlp.down.register_forward_pre_hook(hook(mlp.layer)) for mlp in mlps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(model, last: torch.nn.Module) -> Iterator[dict[torch.nn.Module, Any]]:
    """Yield module -> output of the one forward pass within the block, for `last` and all modules finished before it.

    Only outermost modules are kept: modules inside a recorded one are never called when its output is known. The dict
    is complete when the block has ended.
    """
    outputs: dict[torch.nn.Module, Any] = {}
    calls: Counter[torch.nn.Module] = Counter()

    def keep(module, inputs, output):
        if not calls[last]:
            for inner in module.modules():
                outputs.pop(inner, None)
            outputs[module] = output
        calls[module] += 1

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
        # A module called more than once, such as a dropout shared by attention and MLP, has no single output.
        for module in [module for module in outputs if calls[module] > 1]:
            del outputs[module]


@contextmanager
def replayed(outputs: dict[torch.nn.Module, Any], rows: int) -> Iterator[None]:
    """Make these modules return the given outputs of one row at once, for a batch of `rows`, within the block.

    With the outputs of `recorded`, a forward pass runs only the modules after them. The rows are views, not copies.
    """
    before = {module: vars(module).get("forward") for module in outputs}
    for module, output in outputs.items():
        module.forward = _constant(_expanded(output, rows))
    try:
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


def _constant(output: Any) -> Callable:
    return lambda *args, **kwargs: output


def _expanded(output: Any, rows: int) -> Any:
    if isinstance(output, tuple):
        return tuple(_expanded(part, rows) for part in output)
    # A tensor without a batch dimension of 1 already has the right length, or is broadcast.
    if isinstance(output, torch.Tensor) and output.shape[:1] == (1,):
        return output.expand(rows, *output.shape[1:])
    return output


def with_copies(model, tokens: torch.Tensor, positions: torch.Tensor) -> dict[str, Any]:
    """Return the inputs of a forward pass over sequences, each followed by copies of some of its tokens.

    A copy has its token's position, attends to the tokens before it and to itself, and nothing attends to it. Changing
    its neurons therefore gives exactly the logits that the same change at the token's position would give, because no
    position attends to a later one. One pass can hold any number of positions and changes. Windows of the attention are
    those of the model; rows with copies must be no longer than its `longest_row`.

    tokens (B, T) and positions (B, C) integers. The copies are the last C positions, in order.
    """
    length, copies = tokens.shape[1], positions.shape[1]
    places = torch.cat([torch.arange(length, device=tokens.device).expand(len(tokens), -1), positions], 1)
    columns = torch.arange(length + copies, device=tokens.device)
    seen = (places[:, None, :] < places[:, :, None]) & (columns < length) | (columns == columns[:, None])
    windows = attention_windows(model.config)
    if all(window is None or window >= length for window in windows.values()):
        windows = dict.fromkeys(list(windows)[:1])  # all kinds of layers see the same
    masks = {kind: _added(model, seen & inside(places, kind, window)) for kind, window in windows.items()}
    return dict(
        input_ids=tokens.gather(1, places),
        position_ids=places,
        attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
    )


def _added(model, seen: torch.Tensor) -> torch.Tensor:
    """Return the mask to add to attention scores, (B, 1, T, T), of what a token sees, bool (B, T, T)."""
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(model.dtype).min)[:, None]
