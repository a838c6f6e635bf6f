"""Cases to compare: their sizes, and the floating-point operations that they require."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CONTEXT, WIDTH, VOCABULARY, TEXT_VOCABULARY = 150, 128, 14, 50257
SPECIALS = dict(bos_token_id=10, eos_token_id=11, pad_token_id=13)
INNER = 4 * WIDTH


@dataclass(frozen=True)
class Sizes:
    """How much is measured. Recipes that take minutes do only a stated share of the work, which is scaled linearly.

    layers, batch, batches    of training
    text_batch                sequences in a step of the text model
    memorized, generated      sequences to check, and how many of them the recipe generates
    forget, few              sequences to unlearn, and how many Zero-Out and IG get at a time
    neurons, positions        Zero-Out's neurons and IG's positions that the recipe processes
    gradients, updates        OBS's gradients, and how many the recipe adds
    main, extra               sequences built of the main task and of each extra task
    repeats, budget           rounds, and seconds after which a case begins no further round
    """

    layers: tuple[int, ...] = (2, 4)
    batch: int = 128
    batches: tuple[int, ...] = (32, 128, 512, 1024)
    text_batch: int = 32
    memorized: int = 1000
    generated: int = 32
    forget: int = 256
    few: int = 4
    neurons: int = 4
    positions: int = 6
    gradients: int = 512
    updates: int = 16
    main: int = 20000
    extra: int = 3000
    repeats: int = 5
    budget: float = 30.0


QUICK = Sizes(
    layers=(2,), batch=32, batches=(32, 64), text_batch=4, memorized=128, generated=4, forget=64, few=1, neurons=1,
    positions=1, gradients=32, updates=2, main=4000, extra=600, repeats=1, budget=4.0,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row.

    work       a description of one unit of work
    variants   "recipe", "stock", "ours" and any others: functions that do the work, or a share of it
    shares     the shares of variants that do only a part of the work
    elsewhere  the variants that are also measured as they come, in a process with the default allocator
    flops, bytes   that the work requires; 0 if no limit is claimed
    dtype      precision of our matrix products, "float32" or "bfloat16"
    goal, goal_same_allocator, goal_share   what ratio, ratio_same_allocator and share_of_limit should reach, or None
    tokens     in one unit of work, if tokens per second are meaningful
    """

    work: str
    variants: Mapping[str, Callable[[], Any]]
    shares: Mapping[str, float] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ("recipe",)
    flops: float = 0.0
    bytes: float = 0.0
    dtype: str = "float32"
    goal: float | None = None
    goal_same_allocator: float | None = None
    goal_share: float | None = None
    tokens: int = 0


Builder = Callable[[], Case]


def block_flops(positions: int, length: int = CONTEXT) -> float:
    """Return the operations of a block's forward pass: four attention and two MLP matrices, and full attention."""
    return positions * (24.0 * WIDTH**2 + 4.0 * length * WIDTH)


def head_flops(positions: int, vocabulary: int = VOCABULARY) -> float:
    """Return the operations of the output layer's forward pass."""
    return 2.0 * positions * WIDTH * vocabulary


def forward_flops(rows: int, layers: int, vocabulary: int = VOCABULARY) -> float:
    """Return the operations of a forward pass on whole sequences."""
    positions = rows * CONTEXT
    return layers * block_flops(positions) + head_flops(positions, vocabulary)


def mask_flops(rows: int, layers: int) -> float:
    """Return the operations of a forward and backward pass that needs only the gradients of MLP weights."""
    return 2 * forward_flops(rows, layers) + layers * 16.0 * WIDTH**2 * rows * CONTEXT
