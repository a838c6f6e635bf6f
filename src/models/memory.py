"""How much memory a model and what runs on it take, from its config alone: nothing is loaded, nothing is computed.

The model is built of fake tensors (torch's FakeTensorMode), which have a shape and a type but no numbers. The real code
runs on them, so that no formula for the activations of an architecture has to be kept true, while every tensor that
it makes is counted as long as it lives.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tinymem.models import cross_entropy
from tinymem.models.adapter import MLP, find_mlps
from tinymem.models.attention import attention_settings
from tinymem.models.loading import empty_model

KNOWN = Path(__file__).parent / "known_shapes.json"
VARIANT = re.compile(r"(-deduped)?(-v0)?(-instruct|-sft|-dpo)?$")  # of the shape that the name before it has


@dataclass(frozen=True)
class Shape:
    """A model as its config describes it.

    model   of fake tensors on the CPU, in evaluation mode
    mode    the FakeTensorMode in which alone it can run
    device  "cpu" or "cuda": for which it is planned; the same kernels are assumed, but larger chunks on a GPU
    """

    model: Any
    mode: Any
    device: str

    @cached_property
    def parameters(self) -> int:
        """Entries of all parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def weight_bytes(self) -> int:
        """Parameters and buffers."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)

    @cached_property
    def mlps(self) -> list[MLP]:
        """The MLPs, of fake tensors, first block first."""
        return find_mlps(self.model)

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return self.model.dtype.itemsize

    @property
    def mlp_entries(self) -> int:
        """Entries of all MLP weights and biases."""
        return sum(weight.parameter.numel() for mlp in self.mlps for weight in mlp.weights)

    @property
    def matrix_entries(self) -> int:
        """Entries of all MLP matrices."""
        return sum(matrix.parameter.numel() for mlp in self.mlps for matrix in mlp.matrices)

    @property
    def largest(self) -> int:
        """Entries of the largest parameter."""
        return max(parameter.numel() for parameter in self.model.parameters())

    @property
    def neurons(self) -> int:
        """Neurons of all layers."""
        return sum(mlp.inner_dim for mlp in self.mlps)

    def peak(self, run: Callable[[Any], Any], true: float = 1.0) -> int:
        """The most bytes that run(model) has allocated at a time, beside the model itself.

        Numbers that the code asks for do not exist: a tensor of bools is taken to be true in the share `true` of its
        places, and a single bool to be false, as in "if anything went wrong".
        """
        allocations, chunks = _allocations(self.model, true), cross_entropy.CHUNK_LOGITS
        before = chunks["cpu"]
        chunks["cpu"] = chunks[self.device]
        try:
            with self.mode, allocations:
                run(self.model)
        finally:
            chunks["cpu"] = before
        return allocations.peak


def shape_of(config, dtype: torch.dtype, device: str = "cpu", name: str = "this config") -> Shape:
    """The shape of a causal LM. config: transformers' own. name: for messages. UserError where its MLPs are not found."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = empty_model(name, config, dtype=dtype, **attention_settings(config)).eval()
    mode = FakeTensorMode()
    with mode:
        _replace_tensors(model)
    find_mlps(model)
    return Shape(model, mode, device)


def _replace_tensors(model) -> None:
    """Tensors on the meta device become fake ones that say to be on the CPU; what was tied stays tied."""
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


def known_shapes() -> dict[str, dict[str, Any]]:
    """The public config numbers of well-known models, by name."""
    return json.loads(KNOWN.read_text())


def known_config(name: str):
    """The config of a well-known model, such as pythia-2.8b, Llama-3-8B or OWNER/NAME of these; None for others.

    Variants have the same shape: Llama-3.1-8B-Instruct is Llama-3-8B to a plan.
    """
    from transformers import AutoConfig

    plain = VARIANT.sub("", name.rstrip("/").rsplit("/", 1)[-1].lower()).removeprefix("meta-").replace("3.1", "3")
    for known, numbers in known_shapes().items():
        if plain == known.lower().removeprefix("meta-"):
            return AutoConfig.for_model(**numbers)
    return None


def _allocations(model, true: float):
    """A dispatch mode that counts the bytes of living tensors: `peak` is their most so far, without the model's own.

    Made here, since the base class needs torch (see tinymem.lazy).
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    aten = torch.ops.aten

    class Allocations(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.live = self.peak = 0
            self.known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function is aten._local_scalar_dense.default:
                return _number(arguments[0].dtype)
            if function is aten.nonzero.default:
                output = _places(arguments[0], true)
            else:
                if function in (aten.index.Tensor, aten.index_put_.default):
                    tensor, indices, *others = arguments
                    arguments = (tensor, [i for index in indices for i in _integers(index, true)], *others)
                output = function(*arguments, **(keywords or {}))
            for tensor in tree_leaves(output):
                if isinstance(tensor, torch.Tensor):
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


def _number(dtype: torch.dtype) -> bool | int | float:
    """A number that no tensor has to give; 0.5, so that code which compares with 0 and with 1 takes neither way out."""
    if dtype == torch.bool:
        return False
    return 0.5 if dtype.is_floating_point else 1


def _places(tensor: torch.Tensor, true: float) -> torch.Tensor:
    """What `nonzero` gives: all places of numbers, a share of those of bools."""
    count = tensor.numel() if tensor.dtype != torch.bool else min(tensor.numel(), int(true * tensor.numel()) + 1)
    return torch.empty(count, tensor.dim(), dtype=torch.long, device=tensor.device)


def _integers(index: torch.Tensor | None, true: float) -> list[torch.Tensor | None]:
    """An index of bools as the indices that it stands for."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return list(_places(index, true).unbind(1))
