"""How long an expensive method will take, from the time that a small part of its work takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from tinymem.records.record import gpus_in_use


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds of one call, after another that warms up. Waits for the GPUs."""
    work()
    _finish()
    start = time.perf_counter()
    work()
    _finish()
    return time.perf_counter() - start


def _finish() -> None:
    for gpu in gpus_in_use():
        torch.cuda.synchronize(gpu)
