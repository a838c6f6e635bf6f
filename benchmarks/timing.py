"""Time functions in turn, so that other work on the machine affects them alike, and measure the machine's limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Round = dict[str, float]
MATRIX = {"cpu": 2048, "cuda": 8192}  # sides large enough to reach the peak rate
COPY = {"cpu": 2**26, "cuda": 2**30}  # bytes; far more than fits any cache


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Return the wall-clock time of one call, including a GPU's work."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def rounds(
    timers: Mapping[str, Callable[[], float]], repeats: int, warm_up: int = 1, budget: float = float("inf")
) -> list[Round]:
    """Call every timer once per round and return the times, one dict per round.

    repeats   rounds that count, after `warm_up` rounds that do not count
    budget    no round begins after so many seconds, except the first that counts
    """
    done: list[Round] = []
    start = time.perf_counter()
    for number in range(warm_up + repeats):
        if number > warm_up and time.perf_counter() - start > budget:
            break
        done.append({name: timer() for name, timer in timers.items()})
    return done[warm_up:]


def medians(done: list[Round]) -> Round:
    """Return the median over rounds of each timer."""
    return {name: statistics.median(times[name] for times in done) for name in done[0]}


def matrix_product(device: torch.device, dtype: str) -> tuple[Callable[[], Any], float]:
    """Return a large square matrix product, and its floating-point operations: no training step is faster."""
    side = MATRIX[device.type]
    one = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))
    out = torch.empty_like(one)
    return lambda: torch.mm(one, one, out=out), 2.0 * side**3


def copying(device: torch.device) -> tuple[Callable[[], Any], float]:
    """Return a function that copies a large tensor, and the bytes that it reads and writes."""
    source = torch.zeros(COPY[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2.0 * source.numel()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
