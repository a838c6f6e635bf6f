"""The memory that a model and code on it need, from the model's config alone: nothing is loaded or computed.

The model consists of fake tensors (torch's FakeTensorMode), which have a shape and a type but no numbers. The real code
runs on them, and every tensor it makes is counted while it lives. This avoids formulas for the activations of each
architecture.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch

from tinymem.models import cross_entropy
from tinymem.models.adapter import MLP, find_mlps
from tinymem.models.attention import attention_settings
from tinymem.models.loading import empty_model

T = TypeVar("T")
SMALL = 2**16  # entries of the largest integer tensor that is real, not only counted


@dataclass(frozen=True)
class Shape:
    """A model of fake tensors, built from a config.

    model   the model, on the CPU, in evaluation mode
    mode    the FakeTensorMode that it needs to run
    device  the planned device, "cpu" or "cuda"; both are assumed to use the same kernels, a GPU in larger chunks
    """

    model: Any
    mode: Any
    device: str

    @cached_property
    def parameters(self) -> int:
        """The entries of all parameters; tied parameters count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def weight_bytes(self) -> int:
        """The bytes of parameters and buffers."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)

    @cached_property
    def mlps(self) -> list[MLP]:
        """The MLPs, made of fake tensors, first block first."""
        return find_mlps(self.model)

    @property
    def mlp_entries(self) -> int:
        """The entries of all MLP weights and biases."""
        return sum(weight.parameter.numel() for mlp in self.mlps for weight in mlp.weights)

    @cached_property
    def cuts(self) -> tuple[Shape, Shape]:
        """The same model with only its first block, and with its first two blocks."""
        return self._cut(1), self._cut(2)

    def _cut(self, blocks: int) -> Shape:
        config = copy.deepcopy(self.model.config)
        text = config.get_text_config()
        for name, value in vars(text).items():
            if isinstance(value, list) and len(value) == text.num_hidden_layers:  # one entry per block
                setattr(text, name, [*value, *value[-1:]][:blocks])  # two blocks even if the model has one
        text.num_hidden_layers = blocks
        return shape_of(config, self.model.dtype, self.device)

    def run(self, function: Callable[[Any], T]) -> T:
        """Return function(model), called in the mode of the model's fake tensors."""
        return self._counted(function, 1.0)[0]

    def peak(self, function: Callable[[Any], Any], share: float = 1.0) -> int:
        """Return the peak bytes that function(model) allocates, without the model itself.

        Tests of fake numbers get the usual answer (all are finite, none are equal, nothing failed), so that the code
        takes its usual path. A mask of weights is assumed to be true in `share` of its entries.
        """
        return self._counted(function, share)[1]

    def _counted(self, function: Callable[[Any], T], share: float) -> tuple[T, int]:
        allocations, chunks = _allocations(self.model, share), cross_entropy.CHUNK_LOGITS
        before = chunks["cpu"]
        chunks["cpu"] = chunks[self.device]
        try:
            with self.mode, allocations:
                return function(self.model), allocations.peak
        finally:
            chunks["cpu"] = before


def shape_of(config, dtype: torch.dtype, device: str = "cpu", name: str = "this config") -> Shape:
    """Return the shape of a causal LM. config: transformers'. name: for messages. Raise UserError without MLPs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = empty_model(name, config, dtype=dtype, **attention_settings(config)).eval()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        _replace_tensors(model)
    model.planned_for = device
    find_mlps(model)
    return Shape(model, mode, device)


def _replace_tensors(model) -> None:
    """Replace tensors on the meta device with fake ones that claim to be on the CPU; tied tensors stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    parameter = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if parameter else fake
                own[name] = made[id(tensor)]


def _allocations(model, share: float):
    """Return a dispatch mode that counts the bytes of live tensors. `peak` is their maximum, without the model's.

    Token ids, positions and values derived only from them are real: they are small tensors of integers or bools that do
    not depend on a fake tensor. Lengths, batches and measured positions are therefore those of a run; only floats have
    no numbers.

    The class is defined inside the function, since its base class needs torch (see tinymem.lazy).
    """
    from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map

    aten = torch.ops.aten

    # `any` is true everywhere. Ties are rare; exceptions, as from isfinite().logical_not_(), never occur.
    answers = {aten.any.dim: 1.0, aten.eq.Tensor: 0.0, aten.eq.Scalar: 0.0}
    answers |= {aten.logical_not.default: 0.0, aten.logical_not_.default: 0.0}

    def real_integers(function, arguments, keywords, known: bool) -> Any:
        """Call a function without fake arguments: integer and bool results stay real, floats become fake."""
        output = None if known else function(*arguments, **keywords)
        if known or all(map(_is_small, tree_leaves(output))):
            with unset_fake_temporarily():
                output = function(*arguments, **keywords)
        return tree_map(lambda leaf: leaf.clone() if _is_float(leaf) else leaf, output)

    class Allocations(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.live = self.peak = 0
            self.known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            keywords = keywords or {}
            inputs = list(_tensors((*arguments, *keywords.values())))
            fake = any(isinstance(tensor, FakeTensor) for tensor in inputs)
            if not fake:
                output = real_integers(function, arguments, keywords, bool(inputs))
            elif function is aten._local_scalar_dense.default:
                return _number(arguments[0])
            elif function is aten.allclose.default:
                return True
            elif function is aten.is_set_to.default:
                return _places_in_memory(arguments[0]) == _places_in_memory(arguments[1])
            elif function is aten.nonzero.default:
                output = _places(arguments[0], share)
            else:
                if function in (aten.index.Tensor, aten.index_put_.default):
                    tensor, indices, *others = arguments
                    arguments = (tensor, [i for index in indices for i in _integers(index, share)], *others)
                output = function(*arguments, **keywords)
                if function in answers:
                    output.true_share = answers[function]
                elif function is aten.all.default:  # everything is finite, no exceptions occur
                    output.true_share = getattr(arguments[0], "true_share", 1.0)
            for tensor in _tensors([output]):
                self._count(tensor.untyped_storage())
            return output

        def _count(self, storage) -> None:
            if storage._cdata in self.known:
                return
            self.known.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

        def _forget(self, key: int, size: int) -> None:
            self.known.discard(key)
            self.live -= size

    return Allocations()


def _places_in_memory(tensor: torch.Tensor) -> tuple:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()


def _number(tensor: torch.Tensor) -> bool | int | float:
    """Return a stand-in for `tensor.item()`.

    0.5 for floats, so that early exits on 0 or 1 are not taken; 1 for integers; False for bools, unless they come from
    `all`.
    """
    if tensor.dtype == torch.bool:
        return bool(getattr(tensor, "true_share", False))
    return 0.5 if tensor.dtype.is_floating_point else 1


def _places(tensor: torch.Tensor, share: float) -> torch.Tensor:
    """Return a result of `nonzero`: all places for numbers, a share of the places for bools."""
    count = tensor.numel()
    if tensor.dtype == torch.bool:
        count = min(count, int(getattr(tensor, "true_share", share) * count) + 1)
    return torch.empty(count, tensor.dim(), dtype=torch.long, device=tensor.device)


def _integers(index: torch.Tensor | None, share: float) -> list[torch.Tensor | None]:
    """Return an index of bools as the equivalent integer indices."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    if index is None or index.dtype != torch.bool:
        return [index]
    if hasattr(index, "fake_mode"):
        return list(_places(index, share).unbind(1))
    with unset_fake_temporarily():
        return list(index.nonzero().unbind(1))


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among values and within lists and tuples of them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype.is_floating_point


def _is_small(leaf: Any) -> bool:
    """Return whether an output can be real: integers or bools in a tensor smaller than a weight."""
    return isinstance(leaf, torch.Tensor) and not leaf.dtype.is_floating_point and leaf.numel() <= SMALL
