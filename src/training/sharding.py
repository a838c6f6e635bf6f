"""Divide the weights among processes during training (FSDP): a sharded copy of the model, at least in float32.

Each process keeps its share of every block's weights, gradients and optimizer state. When a block runs, it is gathered
in the model's own type. Embeddings, norms and the output layer, outside the blocks, are whole in every process. The
model itself does not change: it is the reference of the loss and is used for measuring.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tinymem.models.adapter import find_blocks
from tinymem.models.edit import Weights
from tinymem.training.processes import Processes


class Sharded:
    """The sharded copy of a model. model: the copy, to be trained."""

    def __init__(self, original, processes: Processes) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self._original, self.model = original, copy.deepcopy(original)
        mesh = init_device_mesh(original.device.type, (processes.size,))
        policy = MixedPrecisionPolicy(param_dtype=original.dtype, reduce_dtype=torch.float32)
        for block in find_blocks(self.model)[1]:
            kind = torch.promote_types(original.dtype, torch.float32)
            # By default a block would stay gathered after a pass, and the optimizer would get the gathered weights.
            shard: Any = fully_shard(block.to(kind), mesh=mesh, reshard_after_forward=True, mp_policy=policy)
            shard.set_gradient_divide_factor(1.0)  # losses are already divided by the rows of the whole batch
            shard.set_force_sum_reduction_for_comms(True)  # gloo supports no other reduction

    @contextmanager
    def unedited(self) -> Iterator[Any]:
        """Yield the model before the edit."""
        yield self._original

    @contextmanager
    def taken(self, notes: Mapping[str, float]) -> Iterator[Weights]:
        """Yield the edit that the training has made so far. Every process must call this."""
        kinds = {name: parameter.dtype for name, parameter in self._original.named_parameters()}
        yield Weights({n: whole(p.detach()).to(kinds[n], copy=True) for n, p in self.model.named_parameters()}, notes)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor gathered, other tensors unchanged. Every process must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
