"""Parts that all sweep scripts share: flags, dry run, progress, final table, exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tinymem import cli, files
from tinymem.cli.display import Display
from tinymem.sweeps.attempt import DONE, FAILED, Place
from tinymem.sweeps.engine import JobState, Pool, Sweep, run_jobs, survey
from tinymem.sweeps.job import Job
from tinymem.sweeps.timings import Timings


def add_sweep_options(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """Add the flags that all sweep scripts share. output_dir: describes its default in the help."""
    group = parser.add_argument_group("Sweep")
    group.add_argument("--small", action="store_true", help="a grid of minutes on two cores, not the study's")
    group.add_argument("--site", default="local", help="where to run: local, local_processes, or a TOML file that "
                       "describes a cluster (default: local)")  # fmt: skip
    group.add_argument("--max_workers", type=cli.positive, metavar="N",
                       help="runs at a time on a machine (default: one per GPU, or per core)")  # fmt: skip
    group.add_argument("--retries", type=cli.not_negative, default=1, metavar="N",
                       help="further attempts for a run that fails (default: 1)")  # fmt: skip
    group.add_argument("--limit", type=cli.positive, metavar="N", help="start at most N commands this time")
    group.add_argument("--dry_run", action="store_true", help="print the commands and their number; run nothing")
    group.add_argument("--output_dir", help=f"folder for all output (default: {output_dir})")
    group.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    group.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"),
                       help="device of each run; CUDA_VISIBLE_DEVICES selects GPUs (default: auto)")  # fmt: skip


def sweep(
    arguments: argparse.Namespace,
    jobs: Sequence[Job],
    folder: Path,
    root: Path,
    open_pool: Callable[[list[Job], Place], AbstractContextManager[Pool]],
    on_finish: Callable[[], None] = lambda: None,
) -> None:
    """Run the missing jobs, or print them with --dry_run. Exit with 1 if records are missing afterwards.

    folder: the sweep's folder, for failures; root: the folder in which commands start; open_pool(jobs, place): opens
    the workers; on_finish(): prints what the sweep has found so far.
    """
    everything, ended = run_missing(arguments, jobs, folder, root, open_pool)
    if arguments.dry_run:
        return
    if any(job_state.runs > job_state.left for job_state in everything.values()):
        on_finish()
    leave(ended)
    sys.exit(1 if any(job_state.left for job_state in everything.values()) else 0)


def run_missing(
    arguments: argparse.Namespace,
    jobs: Sequence[Job],
    folder: Path,
    root: Path,
    open_pool: Callable[[list[Job], Place], AbstractContextManager[Pool]],
) -> tuple[dict[str, JobState], Sweep]:
    """Run the missing jobs and print their outcome, or print them with --dry_run. Return the state of all jobs."""
    surveyed = survey(jobs)
    todo = [job_state for job_state in surveyed.values() if job_state.left][: arguments.limit]
    if arguments.dry_run:
        _print_plan(list(surveyed.values()), todo, Timings(folder))
        return surveyed, Sweep(surveyed)
    place = Place(str(root), str(files.writable_folder(folder).absolute()))
    names = {job_state.job.name for job_state in todo}
    chosen = {name: job_state for name, job_state in surveyed.items() if not job_state.left or name in names}
    result = _run(chosen, todo, place, arguments.retries, open_pool) if todo else Sweep(chosen)
    everything = {**surveyed, **result.jobs}  # including those beyond --limit
    _print_result(everything, folder)
    return everything, result


def leave(result: Sweep) -> None:
    """Report why a sweep ended early, if it did. Exit with 130 if the user stopped it."""
    if result.ended:
        print(f"{cli.program()}: {result.ended}", file=sys.stderr)
    if result.stopped:
        sys.exit(130)


def _print_plan(surveyed: list[JobState], todo: list[JobState], timings: Timings) -> None:
    for job_state in todo:
        print(shlex.join(["python", *job_state.job.command(job_state.missing)]))
    runs, done = sum(job_state.left for job_state in todo), sum(job_state.before for job_state in surveyed)
    total = sum(job_state.runs for job_state in surveyed)
    hours = f"; {in_hours(timings.total(p.job for p in todo), timings.count)}" if todo else ""
    commands = f"{len(todo)} command{'s' * (len(todo) != 1)}"
    print(f"\n{commands} for {runs} run{'s' * (runs != 1)}; of the grid's {total} runs {done} are done already{hours}")


def in_hours(seconds: float | None, count: int) -> str:
    """Return a duration as text, with the number of timed commands that it is estimated from."""
    if seconds is None:
        return "none has been timed yet (--limit 3 times some)"
    return f"about {seconds / 3600:.1f} hours, one at a time, as the {count} commands before them took"


def _run(chosen: dict[str, JobState], todo: list[JobState], place: Place, retries: int, open_pool: Any) -> Sweep:
    total, before = (sum(getattr(p, name) for p in chosen.values()) for name in ("runs", "before"))
    with cli.interruptible() as should_stop, Display("sweep", total, "run", before) as display:

        def on_records() -> None:
            display.to(sum(job_state.runs - job_state.left for job_state in chosen.values()))

        def on_end(job_state: JobState) -> None:
            on_records()
            if job_state.state != DONE or not display.on_terminal:
                display.write(f"{job_state.state}: {job_state.job.name}  {job_state.message}".rstrip())

        with open_pool([job_state.job for job_state in todo], place) as pool:
            return run_jobs(chosen, pool, place, retries, should_stop, on_end, on_records)


def _print_result(jobs: dict[str, JobState], folder: Path) -> None:
    """Print one line per group, then the folders of records and failures."""
    groups: dict[str, dict[str, Any]] = {}
    for job_state in jobs.values():
        for name in (job_state.job.group, "all"):
            row = groups.setdefault(name, dict.fromkeys(("group", "runs", "done", "skipped", "failed", "not run"), 0))
            row["group"] = name
            row["runs"] += job_state.runs
            row["done"] += job_state.runs - job_state.before - job_state.left
            row["skipped"] += job_state.before
            row["failed" if job_state.state == FAILED else "not run"] += job_state.left
    groups["all"] = groups.pop("all")
    print(cli.table(groups.values()))
    where = f"; failures: {folder}/failed" if groups["all"]["failed"] else ""
    print(f"\nrecords: {_common([job_state.job.folder for job_state in jobs.values()])}{where}")


def _common(folders: list[str]) -> str:
    """Return the common parent folder of all records."""
    common = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    return min(common, os.path.relpath(common), key=len)
