"""The precision of forward passes. Weights keep their type; losses and learned scores are always float32."""

from __future__ import annotations

from functools import cache

import torch

PRECISIONS = ("auto", "float32", "bfloat16")
PRECISION_HELP = "precision of the forward pass; auto: bfloat16 if the device has instructions for it, else float32"


@cache
def auto_precision(device: torch.device) -> str:
    """Return what "auto" means: bfloat16 if the device has instructions for it, else float32.

    Without instructions bfloat16 is emulated: a training step on a processor with plain AVX-512 takes twice as long as
    in float32. With AVX512-BF16 it takes half as long.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        fast = any(present for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)
    else:
        fast = False
    return "bfloat16" if fast else "float32"


def autocast(model, precision: str) -> torch.autocast:
    """Return a context for forward passes in one of PRECISIONS; weights in half precision are used as they are."""
    precision = auto_precision(model.device) if precision == "auto" else precision
    enabled = precision == "bfloat16" and model.dtype == torch.float32
    return torch.autocast(model.device.type, torch.bfloat16, enabled=enabled)
