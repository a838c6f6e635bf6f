"""Scripts that a launcher (`accelerate launch`, `torchrun`) runs in several processes: the first leads the others."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from tinymem import cli
from tinymem.errors import NotFinite, UserError
from tinymem.interrupts import INTERRUPTED, interruptible
from tinymem.localize.method import ConfiguredMethods, Method
from tinymem.localize.watch import Watch
from tinymem.models.production import LoadSettings, open_causal_lm
from tinymem.training.fit import Stopped
from tinymem.training.processes import Processes, join, leave, own_device
from tinymem.training.step import rows_per_side


def check_shared(processes: Processes, methods: ConfiguredMethods, loading: LoadSettings) -> None:
    """Raise UserError for what several processes cannot do together."""
    if processes.size == 1:
        return
    if loading.device_map is not None:
        raise UserError("--device_map: spreads the model of one process; leave it out under a launcher")
    for method, hp in methods:
        if not method.is_objective:
            raise UserError(
                f"--localization_method {method.name}: runs in one process; start it without a launcher, with "
                "--device_map auto for several GPUs"
            )
        if processes.sharded and (hp.lora_rank or hp.update_mask):
            flag = "--lora_rank" if hp.lora_rank else "--update_mask"
            raise UserError(f"{flag}: not with --use_fsdp; leave that out, so that every process has the whole model")
        whole = not hp.retain_weight
        processes.check_divides([hp.batch_size] if whole else rows_per_side(hp.batch_size, hp.forget_share))


@contextmanager
def together(processes: Processes, arguments: argparse.Namespace) -> Iterator[None]:
    """Connect the processes within the block, each with its own device. The others end with the first.

    After an error during a training, the launcher ends them.
    """
    if processes.size == 1:
        yield
        return
    arguments.device = own_device(arguments.device)
    join(cli.resolve_device(arguments.device))
    try:
        yield
    except NotFinite:  # deferred by a method until all else is done: the others still wait
        _end(processes)
        raise
    except SystemExit as stopped:
        if stopped.code == INTERRUPTED:  # as all of them are
            leave(processes)
        raise
    _end(processes)


def _end(processes: Processes) -> None:
    if processes.is_first:
        processes.send(None)
    leave(processes)


def follow(processes: Processes, methods: ConfiguredMethods, loading: LoadSettings, device: str) -> None:
    """Take part in every training that the first process starts, until it ends."""
    known: Mapping[str, Method] = {method.name: method for method, _ in methods}
    model, opened = None, None
    while (call := processes.send(None)) is not None:
        place, name, hp, task = call
        if place != opened:
            try:
                model, _ = open_causal_lm(place[0], place[1], cli.resolve_device(device), loading.dtype)
            except UserError as error:
                raise SystemExit(f"process {processes.rank}: {error}") from None
            opened = place
        task = replace(task, processes=processes, watch=Watch(interruptible=interruptible))
        try:
            for _ in known[name].run(model, task, hp):
                pass
        except Stopped:  # as all of them are
            raise SystemExit(INTERRUPTED) from None
        except NotFinite:  # the first process says so, and continues with other methods
            continue
