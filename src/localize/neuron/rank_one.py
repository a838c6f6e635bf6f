"""The outputs of the layers directly after an MLP when one of its neurons is removed, in closed form.

Without a neuron the residual stream x (T, width) becomes x - a c, where a (T,) is the neuron's activation and c
(width,) its column of W_out. The next LayerNorm needs only the inner products of x and c, and the linear layer after
it only their images: a few numbers per position, neuron and output instead of a matrix product. So the queries, keys
and values of the next block cost almost nothing, and after the last block only the output layer remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tinymem.localize.neuron.hidden import replayed
from tinymem.models.adapter import MLP
from tinymem.models.patching import states_of

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D

Image = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads a LayerNorm of the residual stream, and that stream, (1, T, width)."""

    norm: torch.nn.LayerNorm
    linear: torch.nn.Linear | Conv1D
    stream: torch.Tensor


def block_of(model, mlp: MLP) -> torch.nn.Module:
    """Return the block that an MLP belongs to."""
    return model.get_submodule(f"{mlp.output.name.partition(f'.{mlp.layer}.')[0]}.{mlp.layer}")


@contextmanager
def readers(model, mlp: MLP) -> Iterator[list[Reader]]:
    """Yield the readers of the block's output, found in the one forward pass within the `with` block.

    Readers are recognized by their input tensors, so no architecture is named. The list is complete at the end.
    """
    found: list[Reader] = []
    streams: list[torch.Tensor] = []
    normed: list[tuple[torch.nn.LayerNorm, torch.Tensor, torch.Tensor]] = []

    def after(module, inputs, output) -> None:
        given = inputs[0] if inputs else None
        if module is block:
            streams.append(states_of(output))
        elif type(module) is torch.nn.LayerNorm and module.elementwise_affine:
            normed.extend((module, stream, output) for stream in streams if _same(given, stream))
        elif isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            found.extend(Reader(norm, module, stream) for norm, stream, output in normed if _same(given, output))

    block = block_of(model, mlp)
    handles = [module.register_forward_hook(after) for module in model.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def adds_to_stream(model, mlp: MLP, outputs: dict[torch.nn.Module, Any], run: Callable[[], Any]) -> bool:
    """Return whether the MLP's output is simply added to its block's output, without a norm or scale in between.

    outputs: from `recorded` up to `mlp.down`, in a pass on one sequence. run(): that pass.
    """
    streams: list[torch.Tensor] = []
    handle = block_of(model, mlp).register_forward_hook(
        lambda module, inputs, output: streams.append(states_of(output))
    )
    before = outputs[mlp.down]
    change = before.flip(-1) + before.std()
    try:
        for output in (before, before + change):
            with replayed(outputs | {mlp.down: output}, 1):
                run()
    finally:
        handle.remove()
    return torch.allclose(streams[1] - streams[0], change, rtol=1e-3, atol=1e-3 * change.abs().max().item())


def image(reader: Reader, neurons: torch.Tensor, columns: torch.Tensor) -> Image:
    """Return a function: indices (n,) of neurons -> the linear layer's output without each neuron, float32 (n, T, out).

    neurons: activations, float32 (N, T). columns: of W_out, float32 (N, width). Computed on the layer's device.
    """
    norm, linear = reader.norm, reader.linear
    weight = (linear.weight if isinstance(linear, torch.nn.Linear) else linear.weight.T).float()
    constant = weight @ norm.bias.to(weight) if norm.bias is not None else torch.zeros_like(weight[:, 0])
    constant = constant if linear.bias is None else constant + linear.bias.float()
    weight = weight * norm.weight.to(weight)
    stream, neurons, columns = (tensor.to(weight) for tensor in (reader.stream[0], neurons, columns))
    stream, columns = stream - stream.mean(-1, keepdim=True), columns - columns.mean(-1, keepdim=True)
    of_stream, of_columns = stream @ weight.T, columns @ weight.T
    products, squares = columns @ stream.T, columns.square().sum(-1)[:, None]
    variance = (stream.square().sum(-1) - 2 * neurons * products + neurons.square() * squares) / len(stream.T)
    scale = (variance.clamp(min=0) + norm.eps).rsqrt()
    shift = neurons * scale

    def without(chosen: torch.Tensor) -> torch.Tensor:
        chosen = chosen.to(scale.device)
        output = torch.addcmul(constant, scale[chosen, :, None], of_stream)
        return output.addcmul_(shift[chosen, :, None], of_columns[chosen, None, :], value=-1)

    return without


def _same(one: Any, other: torch.Tensor) -> bool:
    """Return whether two tensors share their memory and shape."""
    return isinstance(one, torch.Tensor) and one.device == other.device and one.is_set_to(other)
