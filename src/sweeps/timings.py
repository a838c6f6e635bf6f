"""Durations of finished commands, from which a dry run estimates how long the rest will take."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from pathlib import Path

from tinymem.sweeps.job import Job

FILE = "timings.jsonl"  # in a sweep's folder: one line per command that succeeded
Kind = tuple[str, str, bool]  # script, group, whether it attacks


def note(folder: str | Path, job: Job, runs: int, seconds: float) -> None:
    """Append the duration of a command. runs: the number of records it had to write."""
    script, group, attacked = kind(job)
    line = json.dumps(dict(script=script, group=group, attacked=attacked, runs=runs, seconds=round(seconds, 1))) + "\n"
    try:
        descriptor = os.open(Path(folder) / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())  # a single write, since other processes may append too
        finally:
            os.close(descriptor)
    except OSError:
        pass  # informative only


class Timings:
    """Durations of commands by kind. Unreadable lines are left out."""

    def __init__(self, *folders: str | Path) -> None:
        self._seconds: dict[Kind, list[float]] = {}
        for folder in folders:
            path = Path(folder) / FILE
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
                try:
                    about = json.loads(line)
                    found = (str(about["script"]), str(about["group"]), bool(about["attacked"]))
                    self._seconds.setdefault(found, []).append(float(about["seconds"]))
                except (ValueError, TypeError, KeyError):
                    continue

    @property
    def count(self) -> int:
        """The number of timed commands."""
        return sum(map(len, self._seconds.values()))

    def expected(self, job: Job) -> float | None:
        """Return the mean seconds of the commands most like this one; None if nothing was timed.

        Most alike: same script, group and attacks; else same script and attacks; else any command.
        """
        script, group, attacked = kind(job)
        likeness = (
            lambda other: other == (script, group, attacked),
            lambda other: (other[0], other[2]) == (script, attacked),
            lambda other: True,
        )
        for like in likeness:
            if same := [value for other, values in self._seconds.items() if like(other) for value in values]:
                return statistics.fmean(same)
        return None

    def total(self, jobs: Iterable[Job]) -> float | None:
        """Return the seconds that jobs will take one after another; None if nothing was timed."""
        expected = [self.expected(job) for job in jobs]
        known = [value for value in expected if value is not None]
        return sum(known) if len(known) == len(expected) else None


def kind(job: Job) -> Kind:
    """Return the kind of a job, which determines its duration."""
    return job.words[0], job.group, bool(job.attacks)
