"""Parts that the demos share: running the ordinary scripts, their time, records, bars, greedy continuations."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tinymem import cli, files
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.generation import NOTHING, greedy_continuations
from tinymem.models.tinymem import load_model
from tinymem.plots.labels import file_name
from tinymem.records.identity import NEVER_PLANTED, is_run
from tinymem.records.record import find_record, read_record
from tinymem.records.table import load_records
from tinymem.sweeps.jobs import Common, find_checkpoint, localize_jobs
from tinymem.training.checkpoint import seconds_spent

STATES = ("before", "after", "twin")
BARS = {"before": ("0.35", ""), "after": ("0.8", "//"), "twin": ("white", "..")}  # colour and hatch
MEASURED = "--metrics published percent_near_verbatim percent_extractable auc_loss"


def run(command: str) -> None:
    """Run a script with this Python and print its command. Exit if it fails or is interrupted."""
    cli.run_script(shlex.split(command))


def start_at_root(output_dir: str) -> Path:
    """Make the output folder and change to the repository's folder, where commands start. Return the output folder."""
    output = files.writable_folder(Path(output_dir).resolve())
    os.chdir(Path(__file__).parent.parent)
    return output


def stopwatch(reused: float) -> Callable[[], float]:
    """Return a function that gives the seconds from now on plus `reused`, those of the run's earlier sessions."""
    start = time.monotonic() - reused
    return lambda: round(time.monotonic() - start, 1)


def spent_before(run: Path, unlearned: Path) -> float:
    """Return the seconds that earlier sessions spent on training in `run` and on the records of `unlearned`."""
    return seconds_spent(run) + sum(record["cost"]["seconds"] or 0 for record in load_records(unlearned))


def records_of(unlearned: Path, model: Path, method: str, ratio: float, **settings: Any) -> dict[str, dict]:
    """Return three records: "after" of a run, "before" of the unedited model, and "twin" of the never-planted model.

    unlearned: folder of the records; model: the checkpoint; method, ratio, settings: exactly those of the run.
    """
    hp = METHODS[method].hyper_parameters(ratio=(ratio,), **settings)
    (job,) = localize_jobs(find_checkpoint(model), [(METHODS[method], hp)], TaskSettings(), Common("data"), unlearned)
    asked, weights = job.record_identity(ratio), weights_fingerprint(load_model(model))
    runs = [record for record in load_records(unlearned) if is_run(record, asked)]
    after = next(record for record in runs if record["fingerprints"]["weights"] == weights)
    before = read_record(unlearned / "records" / f"{after['parent']}.json")
    twin = find_record(unlearned, {**before, "kind": NEVER_PLANTED})
    return dict(zip(STATES, (before, after, twin)))


def keep_page(unlearned: Path, record: Mapping[str, Any], output: Path) -> None:
    """Copy the page of a run to the output folder, as page.html and page.png."""
    for suffix in ("html", "png"):
        shutil.copy(unlearned / "pages" / f"{file_name(record)}.{suffix}", output / f"page.{suffix}")


def draw_bars(axis, heights: Mapping[str, Sequence[float]], labels: Mapping[str, str], names: Sequence[str]) -> None:
    """Draw groups of three bars, 0 to 100, one for each state. names: the groups' names; labels: the states'."""
    for shift, state in zip((-0.28, 0.0, 0.28), STATES):
        colour, hatch = BARS[state]
        places = [place + shift for place in range(len(names))]
        bars = axis.bar(places, heights[state], 0.27, color=colour, hatch=hatch, edgecolor="black", label=labels[state])
        axis.bar_label(bars, [f"{height:.1f}".removesuffix(".0") for height in heights[state]], fontsize=7)
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set(ylim=(0, 128), yticks=range(0, 101, 20), ylabel="%")


def continuation(model, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """Return at most `count` tokens with which greedy decoding continues a prompt (P,), int64, on the CPU."""
    tokens = greedy_continuations(model, [prompt], count)[0]
    return tokens[tokens != NOTHING]
