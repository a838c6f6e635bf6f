"""Random bits from integers alone: the same in every epoch, process and device, without a generator to save."""

from __future__ import annotations

import torch

# splitmix64 (Steele, Lea & Flood 2014): increment and multipliers, as signed 64-bit integers.
STEP, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def random_bits(ids: torch.Tensor, seed: int, counters: torch.Tensor) -> torch.Tensor:
    """Return uniform integers in [0, 2^32), int64 (ids, counters): the splitmix64 hash of (seed, id, counter)."""
    seeds = mix(torch.full_like(ids, seed) * STEP)
    keys = mix(seeds + (ids + 1) * STEP)
    return high_bits(mix(keys[:, None] + (counters + 1) * STEP))


def mix(x: torch.Tensor) -> torch.Tensor:
    """Return the splitmix64 finalizer of int64 values: every bit of a value changes half the bits of the result."""
    x = (x ^ _right(x, 30)) * _FIRST
    x = (x ^ _right(x, 27)) * _SECOND
    return x ^ _right(x, 31)


def high_bits(x: torch.Tensor) -> torch.Tensor:
    """Return the upper half of int64 values, integers in [0, 2^32)."""
    return _right(x, 32)


def _right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right logically; torch's shift copies the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
