"""What the demos share: running the ordinary scripts, their time, their records, greedy continuations."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinymem import cli, files
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.generation import NOTHING, greedy_continuations
from tinymem.models.tinymem import load_model
from tinymem.records.identity import is_run
from tinymem.records.record import read_record
from tinymem.records.table import load_records
from tinymem.sweeps.jobs import Common, find_checkpoint, localize_jobs
from tinymem.training.checkpoint import seconds_spent


def run(command: str) -> None:
    """Run a script with this Python and print its command. Exit if it fails or is interrupted."""
    cli.run_script(shlex.split(command))


def start_at_root(output_dir: str) -> Path:
    """Goes to the repository's folder, where the commands below are at home. Returns the output folder, made."""
    output = files.writable_folder(Path(output_dir).resolve())
    os.chdir(Path(__file__).parent.parent)
    return output


def stopwatch(reused: float) -> Callable[[], float]:
    """Return a function that gives the seconds since now, and those `reused` that earlier sessions have spent on the same run."""
    start = time.monotonic() - reused
    return lambda: round(time.monotonic() - start, 1)


def spent_before(run: Path, unlearned: Path) -> float:
    """Seconds that earlier sessions have spent on training in `run` and on the records of `unlearned`."""
    return seconds_spent(run) + sum(record["cost"]["seconds"] for record in load_records(unlearned))


def before_and_after(unlearned: Path, model: Path, method: str, ratio: float, **settings: Any) -> dict[str, dict]:
    """Return the results of a run, "after", and of the unedited model that it was made from, "before".

    unlearned: folder of the records; model: the checkpoint; method, ratio, settings: exactly those of the run.
    """
    hp = METHODS[method].hyper_parameters(ratio=(ratio,), **settings)
    (job,) = localize_jobs(find_checkpoint(model), [(METHODS[method], hp)], TaskSettings(), Common("data"), unlearned)
    asked, weights = job.record_identity(ratio), weights_fingerprint(load_model(model))
    runs = [record for record in load_records(unlearned) if is_run(record, asked)]
    after = next(record for record in runs if record["fingerprints"]["weights"] == weights)
    before = read_record(unlearned / "records" / f"{after['parent']}.json")
    return {"before": before["results"], "after": after["results"]}


def continuation(model, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """Return the tokens, at most `count`, with which greedy decoding continues a prompt (P,). int64, on the CPU."""
    tokens = greedy_continuations(model, [prompt], count)[0]
    return tokens[tokens != NOTHING]
