"""Identify a model by its weights, so that records and cached scores never confuse two models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tinymem.errors import UserError


@contextmanager
def left_alone(what: str, model, *tensors: torch.Tensor) -> Iterator[None]:
    """Raise UserError if the block, users' code, changes the model or the tensors in place. what: the code's name."""
    before = _state(model, *tensors)
    yield
    if _state(model, *tensors) != before:
        raise UserError(f"{what} changed the model or the sequences in place; let it work on copies")


def _state(model, *tensors: torch.Tensor) -> tuple:
    """Return weights, hooks and modes of a model, the content of tensors, and the default type, for comparison."""
    modules = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
    ]
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return weights_fingerprint(model), modules, digest.hexdigest(), torch.get_default_dtype()


def weights_fingerprint(model) -> str:
    """Return 16 hexadecimal digits of all weights and their names, independent of folder and device."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
