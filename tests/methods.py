"""Every method at settings that take a moment on tiny models."""

from dataclasses import fields
from typing import Any

import torch

from tinymem.localize.method import Method

QUICK = dict(epochs=2, batch_size=4, num_grads=4, ig_steps=2, greedy_k=2, dtype="float32", ratio=(0.2,), steps=(2,))


def quick(method: Method, **changes: Any) -> Any:
    """Settings of a method: QUICK and these changes, as far as it has such settings. A nested ranking stops early."""
    known = {field.name for field in fields(method.hyper_parameters)}
    wanted = QUICK | ({"ratio": (0.005,)} if method.nested else {}) | changes
    return method.hyper_parameters(**{name: value for name, value in wanted.items() if name in known})


def masks_of(method: Method, model, task, hp: Any) -> dict[str, torch.Tensor]:
    """The masks of a method's one strength."""
    ((_, edit),) = method.run(model, task, hp)
    return edit.masks
