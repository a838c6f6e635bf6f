"""The neurons of a running model: reading and changing them, and running only what a change to them affects.

A neuron is one entry of the input of an MLP's W_out (`MLP.down`). Everything here goes through hooks on the stock
model, so that no architecture is written a second time.
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


def measured_positions(task: UnlearningTask) -> torch.Tensor:
    """Which positions of the forget set predict a measured token, bool (U, T - 1).

    Position t predicts token t + 1. The measured tokens are those from the end of the prompt, each sequence's own, to
    the end of the sequence, so the positions are prompt_end - 1 .. T - 2. Ignored tokens are left out.
    """
    predicted = torch.arange(1, task.forget.planted.shape[1])
    window = predicted >= task.forget.prompt_end[:, None]
    return window & loss_mask(task.forget.planted, task.ignored_token)


@contextmanager
def on_neurons(
    mlps: list[MLP], length: int, function: Callable[[int, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Within the block every forward pass on rows of `length` tokens calls function(layer, neurons) for each of these MLPs.

    It goes on with what the function returns, or unchanged where that is None. neurons: (rows, length, inner_dim), also
    where the model has rows and positions in one dimension, as OPT has.
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
    """Module -> output in the one forward pass within the block, of `last` and all modules that finished before it.

    Only outermost modules: what runs inside a recorded module is never called when its output is known. The dict is
    complete when the block has ended.
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
        # A module called more than once, such as a dropout that attention and MLP share, has no one output.
        for module in [module for module in outputs if calls[module] > 1]:
            del outputs[module]


@contextmanager
def replayed(outputs: dict[torch.nn.Module, Any], rows: int) -> Iterator[None]:
    """Within the block these modules return the given outputs at once, those of one row for a batch of `rows`.

    With the outputs of `recorded`, a forward pass costs only what comes after them. The rows are views, not copies.
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
    # What has no batch dimension of 1 is already as long as it should be, or left to broadcasting.
    if isinstance(output, torch.Tensor) and output.shape[:1] == (1,):
        return output.expand(rows, *output.shape[1:])
    return output


def with_copies(tokens: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """The inputs of a forward pass over sequences that are each followed by copies of some of their tokens.

    A copy stands at its token's position, sees the tokens before it and itself, and is seen by nobody. A change to
    its neurons alone therefore gives the logits that the same change at its token's position would give: any number
    of positions and changes in one pass, and exactly so, since no position sees a later one.

    tokens (B, T) and positions (B, C) integers; dtype of the model. The copies are the last C positions, in order.
    """
    length, copies = tokens.shape[1], positions.shape[1]
    places = torch.cat([torch.arange(length, device=tokens.device).expand(len(tokens), -1), positions], 1)
    columns = torch.arange(length + copies, device=tokens.device)
    seen = (places[:, None, :] < places[:, :, None]) & (columns < length) | (columns == columns[:, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=tokens.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return dict(
        input_ids=tokens.gather(1, places),
        position_ids=places,
        attention_mask=mask[:, None],
    )
