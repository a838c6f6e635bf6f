"""Identify a model by its weights, so that records and cached scores never confuse two models."""

from __future__ import annotations

import hashlib

import torch


def weights_fingerprint(model) -> str:
    """Return 16 hexadecimal digits of all weights and their names, independent of folder and device."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
