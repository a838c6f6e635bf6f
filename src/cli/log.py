"""Logs of a run while it runs: --log_jsonl FILE (one JSON object a line) and --tensorboard FOLDER.

A line has `time`, `run` (the folder of a training, or the digest of an unlearning run's record), `what` and `step`. It
also has `steps`, the losses and `tokens_per_second`, or, after a measurement, `metrics`. During a long measurement,
lines have `measuring`, `row`, `rows` and `seconds_left` instead of a step. Steps and rows are written at most once a
second. A log is not part of a run: no record or checkpoint depends on it.
"""

from __future__ import annotations

import argparse
import atexit
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from tinymem import files
from tinymem.cli.display import Meter
from tinymem.errors import UserError
from tinymem.folders import check_writable
from tinymem.inputs import check_file

STEP_SECONDS = 1.0  # between two lines of steps


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add --log_jsonl and --tensorboard."""
    group = parser.add_argument_group("Log")
    group.add_argument("--log_jsonl", metavar="FILE", help="append what happens to this file (its folder is made), "
                       "one JSON object a line: steps with losses and tokens/s, at most one a second, and "
                       "metrics")  # fmt: skip
    group.add_argument("--tensorboard", metavar="FOLDER", help="the same values for TensorBoard, if it is installed")


def open_log(arguments: argparse.Namespace) -> Log:
    """Return the log that the command line asks for. Raise UserError if it cannot be written.

    Steps that the file already has are not written again, except with --force.
    """
    log_jsonl, folder = getattr(arguments, "log_jsonl", None), getattr(arguments, "tensorboard", None)
    return Log(log_jsonl and Lines(Path(log_jsonl), arguments.force), folder and Board(Path(folder)))


class Log:
    """The log of steps and measurements: a JSONL file, a folder for TensorBoard, both or neither."""

    def __init__(self, lines: Lines | None = None, board: Board | None = None) -> None:
        self._outputs = [output for output in (lines, board) if output]
        self._next = 0.0
        self._meter: Meter | None = None  # the last loop, when it was written, and its tokens so far
        self._last: tuple[float, int] = (0.0, 0)
        self._measured: Meter | None = None  # the last pass over rows

    def step(self, run: str, meter: Meter, last: bool = False) -> None:
        """Write a loop's current step if it is time, or if it is the `last` one."""
        if not self._outputs:
            return
        now = time.monotonic()
        if meter is not self._meter:
            self._meter, self._last, self._next = meter, (meter.started, 0), now
        if now < self._next and not last:
            return
        self._next = now + STEP_SECONDS
        speed = (meter.tokens - self._last[1]) / max(now - self._last[0], 1e-9)
        self._last = (now, meter.tokens)
        losses = {name: float(value) for name, value in meter.losses.items()}
        values = losses | ({"tokens_per_second": round(speed)} if meter.tokens else {})
        for output in self._outputs:
            output.step(run, meter.what, meter.done, meter.total, values)

    def rows(self, run: str, what: str, on: str, meter: Meter) -> None:
        """Write the progress of a measuring pass, if it is time; not to TensorBoard. on: what is measured, as text."""
        now = time.monotonic()
        if meter is not self._measured:
            self._measured, self._next = meter, now + STEP_SECONDS
        if now < self._next:
            return
        self._next = now + STEP_SECONDS
        for output in self._outputs:
            if isinstance(output, Lines):
                output.rows(run, what, on, meter)

    def metrics(self, run: str, what: str, step: int, results: Mapping[str, Any], **about: Any) -> None:
        """Write a measurement. about: further values, such as the epoch."""
        for output in self._outputs:
            output.metrics(run, what, step, {n: v for n, v in results.items() if _is_number(v)}, about)


class Lines:
    """A file of JSON objects, one a line, that is only appended to, never cut. The first line creates it."""

    def __init__(self, path: Path, again: bool = False) -> None:
        """Open a file. again: also write what it already has."""
        check_writable(path.parent, flag=" with --log_jsonl")
        self._path = path
        self._file: TextIO | None = None
        self._steps: dict[tuple[str, str], int] = {}  # the last step of each loop
        self._measured: set[tuple[str, str, int]] = set()
        if path.exists() and not path.is_dir():
            check_file(path)  # opening a pipe may take for ever
        try:
            text = path.read_bytes() if path.exists() else b""
            if path.exists():
                open(path, "a").close()
        except OSError as error:
            raise UserError(f"--log_jsonl {path}: cannot be written ({error.strerror})") from None
        for line in _objects(text) if not again else ():
            self._remember(line)

    def _remember(self, line: Mapping[str, Any]) -> bool:
        """Remember the step or measurement of a line. Return whether it is new."""
        run, what, step = (line.get(name) for name in ("run", "what", "step"))
        if not (isinstance(run, str) and isinstance(what, str) and isinstance(step, int)):
            return False
        if "metrics" in line:
            new = (run, what, step) not in self._measured
            self._measured.add((run, what, step))
            return new
        new = step > self._steps.get((run, what), -1)
        self._steps[run, what] = max(step, self._steps.get((run, what), -1))
        return new

    def step(self, run: str, what: str, step: int, steps: int | None, values: Mapping[str, Any]) -> None:
        self._write({"run": run, "what": what, "step": step, "steps": steps, **_finite(values)})

    def metrics(self, run: str, what: str, step: int, results: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self._write({"run": run, "what": what, "step": step, **about, "metrics": _finite(results)})

    def rows(self, run: str, what: str, on: str, meter: Meter) -> None:
        left = meter.seconds_left
        about = {"measuring": on, "row": meter.done, "rows": meter.total}
        self._append({"run": run, "what": what, **about, "seconds_left": None if left is None else round(left)})

    def _write(self, line: dict[str, Any]) -> None:
        if self._remember(line):
            self._append(line)

    def _append(self, line: dict[str, Any]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        if self._file is None:
            files.writable_folder(self._path.parent, flag=" with --log_jsonl")
            self._file = open(self._path, "a", encoding="utf-8")
            if not _ends_with_line(self._path):  # a killed writer left its last line
                self._file.write("\n")
        self._file.write(json.dumps({"time": now, **line}) + "\n")
        self._file.flush()


class Board:
    """A folder of TensorBoard, with one run per loop."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                f"--tensorboard {folder}: the package tensorboard is not installed; pip install tensorboard"
            ) from None
        check_writable(folder, flag=" with --tensorboard")
        self._open, self._folder = SummaryWriter, folder
        self._writers: dict[str, Any] = {}
        atexit.register(self.close)

    def close(self) -> None:
        """Flush and close all writers."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, run: str, what: str, step: int) -> Any:
        """Return the writer of a loop. TensorBoard drops what an interrupted session wrote from this step on."""
        name = "_".join([*what.split(), Path(run).name])
        if name not in self._writers:
            self._writers[name] = self._open(str(self._folder / name), purge_step=step, flush_secs=10)
        return self._writers[name]

    def step(self, run: str, what: str, step: int, steps: int | None, values: Mapping[str, Any]) -> None:
        self._add(run, what, step, values)

    def metrics(self, run: str, what: str, step: int, results: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self._add(run, what, step, {f"metrics/{name}": value for name, value in results.items()})

    def _add(self, run: str, what: str, step: int, values: Mapping[str, Any]) -> None:
        writer = self._writer(run, what, step)
        for name, value in values.items():
            if value is not None:
                writer.add_scalar(name, value, step)


def _objects(text: bytes) -> Iterable[dict[str, Any]]:
    """Return the objects in a log. Lines that hold none, such as one that a killed writer left, are skipped."""
    found = []
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def _ends_with_line(path: Path) -> bool:
    """Return whether a file is empty or its last line is complete."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        return file.read(1) in (b"", b"\n")


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with None in place of those that are not finite, which JSON cannot hold."""
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
