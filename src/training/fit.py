"""The training loop that everything shares. On a CPU, a killed and resumed run ends with the same bytes.

On a GPU it ends with the same numbers up to rounding, since the backward pass of attention sums in varying order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from tinymem.errors import NotFinite
from tinymem.training.checkpoint import Progress
from tinymem.training.step import all_finite

SAVE_SECONDS = 60.0  # a kill loses at most this much work
CHEAP_SECONDS = 3.0  # slower saves are made less often, in proportion: they take at most 5 % of the time


class Stopped(BaseException):
    """Signal that training stopped on request, with its state saved. Like KeyboardInterrupt, this is not an error."""


def fit(
    model,
    optimizer: torch.optim.Optimizer,
    step: Callable[[Any], Sequence[float]],
    batches: Callable[[int], Sequence[Any]],
    epochs: int,
    progress: Progress,
    *,
    rate: Callable[[Progress], float],
    save: Callable[[], None] | None,
    lr_flag: str = "--lr",
    causes: Sequence[str] = (),
    on_step: Callable[..., None] = lambda progress, *losses: None,
    should_stop: Callable[[], bool] = lambda: False,
    anywhere: Callable[[bool], bool] = bool,
) -> Iterator[float]:
    """Train in place from `progress` and yield the mean loss of each finished epoch.

    step(batch)      does a step and returns its losses, whose sum is minimized (`tinymem.training.step`)
    batches(epoch)   the batches of an epoch, the same number in each. They depend only on the epoch, and the learning
                     rate only on the position, so no generator or scheduler needs saving
    progress         position and history of the run; updated in place
    rate(progress)   the learning rate of the next step
    save()           saves the state, every SAVE_SECONDS of training and before Stopped is raised; None: never
    lr_flag          the flag to lower if the loss does not stay finite
    causes           other flags that may be the cause
    on_step(progress, *losses)   called after every step
    should_stop()    called after every step; True saves the state and raises Stopped
    anywhere(flag)   whether a flag is set in any of the processes that train together (with sharded weights, each
                     sees different ones); called after every epoch

    Raise NotFinite if a loss or a weight is not finite; such weights are neither saved nor yielded. Between epochs the
    caller may measure and save the model, or stop iterating.
    """
    started = time.monotonic() - progress.seconds
    saved, pause = time.monotonic(), SAVE_SECONDS

    def weights_finite() -> bool:
        return all_finite(p.detach() for p in model.parameters() if p.requires_grad)

    def check(finite: bool, what: str) -> None:
        if not finite:
            number, lr = progress.epoch * count + progress.step, optimizer.defaults["lr"]
            advice = f", or change {', '.join(causes)}" if causes else ""
            if number == 1 and what == "the loss is":  # the learning rate has had no effect yet
                raise NotFinite(
                    f"{lr_flag} {lr}: the loss is not finite in the first step: the model may be damaged{advice}"
                )
            raise NotFinite(f"{lr_flag} {lr}: {what} not finite in step {number}; use a lower {lr_flag}{advice}")

    while progress.epoch < epochs:
        epoch_batches = batches(progress.epoch)
        count = len(epoch_batches)
        for batch in epoch_batches[progress.step :]:
            before = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = rate(progress)
            losses = step(batch)
            now = time.monotonic()
            progress.step += 1
            check(math.isfinite(sum(losses)), "the loss is")
            progress.loss_sum += sum(losses)
            progress.step_seconds += now - before
            progress.seconds = now - started
            on_step(progress, *losses)
            stop = should_stop()
            if save is not None and (stop or now - saved > pause):
                check(weights_finite(), "a weight is")
                begun = time.monotonic()
                save()
                saved = time.monotonic()
                pause = SAVE_SECONDS * max(1.0, (saved - begun) / CHEAP_SECONDS)
            if stop:
                raise Stopped
        check(not anywhere(not weights_finite()), "a weight is")
        mean = progress.loss_sum / count
        progress.epoch_seconds.append(round(progress.step_seconds, 3))
        progress.epoch, progress.step, progress.loss_sum, progress.step_seconds = progress.epoch + 1, 0, 0.0, 0.0
        done = time.monotonic()
        yield mean
        saved += time.monotonic() - done  # the caller's time does not bring the next save closer


def warmed_up(lr: float, done: int, steps: int) -> float:
    """Return the learning rate after `done` steps: it rises linearly over the first `steps`, then is constant."""
    return lr * min(1.0, (done + 1) / max(1, steps))


def epoch_permutation(count: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the order of `count` rows in an epoch. It depends only on seed and epoch: no generator needs saving."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
