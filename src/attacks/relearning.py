"""Shared part of attacks that train the weights again: plain training, measured after some steps."""

from __future__ import annotations

from collections.abc import Generator

import torch

from tinymem.localize.task import UnlearningTask, draw_groups
from tinymem.models.edit import Weights
from tinymem.models.precision import PRECISION_HELP, PRECISIONS
from tinymem.options import option, settings
from tinymem.training.objective import ObjectiveSettings, snapshots, train_objective
from tinymem.training.step import Side


@settings
class WeightTraining:
    """Settings that all attacks by training share. Subclasses add the steps, the strength of most of them."""

    batch_size: int = option(8, "sequences per step; at most those that the attacker has", low=2)
    dtype: str = option("auto", f"{PRECISION_HELP}; weights keep their type", choices=PRECISIONS)


@settings
class Relearning(WeightTraining):
    """Settings of an attack with one learning rate."""

    lr: float = option(1e-4, "learning rate of AdamW", above=0.0, high=1e3)


def share_of(task: UnlearningTask, share: float) -> torch.Tensor:
    """Return which sequences to forget the attacker has, bool (F,): whole memories, at least one, drawn by the seed."""
    return part_of(memories_of(task), share, task.seed)


def memories_of(task: UnlearningTask) -> torch.Tensor:
    """Return the memory that each sequence to forget belongs to, int64 (F,)."""
    return torch.arange(len(task.forget)) if task.memories is None else task.memories


def part_of(memories: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Return a share of some sequences, bool (rows,): whole memories, at least one, drawn by a seed.

    memories: the memory that each sequence belongs to, (rows,).
    """
    return draw_groups(memories, max(1, round(share * len(memories))), seed)


def relearned(
    model,
    task: UnlearningTask,
    tokens: torch.Tensor,
    steps: tuple[int, ...],
    hp: WeightTraining,
    lr: float,
    lr_flag: str,
) -> Generator[tuple[int, Weights]]:
    """Train on sequences (rows, T) with the loss of plain training; yield the weights after each number of steps.

    The model is unchanged whenever weights are yielded. lr_flag: the flag that NotFinite names if training diverges.
    """
    objective = ObjectiveSettings(steps=steps, lr=lr, batch_size=hp.batch_size, warm_up=0, dtype=hp.dtype)
    side = Side.of(tokens, task.ignored_token)

    def on_step(progress, *losses: float) -> None:
        task.watch.note(min(hp.batch_size, len(tokens)) * tokens.shape[1], loss=losses[0])
        task.watch.step(progress.epoch + progress.step, max(steps))

    training = train_objective(
        model, _loss, side, None, objective, seed=task.seed, microbatch=task.microbatch,
        gradient_checkpointing=task.gradient_checkpointing, lr_flag=lr_flag, on_step=on_step,
    )  # fmt: skip
    return snapshots(model, training)


def _loss(model, reference, forget: Side, retain: Side | None) -> torch.Tensor:
    return forget.losses(model)
