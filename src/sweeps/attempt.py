"""One attempt at a job, on any machine."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinymem import files, locks
from tinymem.errors import UserError
from tinymem.sweeps import timings, with_parent
from tinymem.sweeps.job import Job, missing

DONE, SKIPPED, BUSY, FAILED, STOPPED = "done", "skipped", "busy", "failed", "stopped"
BAD_INPUT = 2  # the exit code of a script that rejects its input: retries are pointless
LOCKS = ".locks"
TAIL_LINES = 60
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """The folders and the environment of a sweep.

    root          the folder in which commands start: the repository, which has the scripts
    folder        receives failed/
    environment   variables set for every run
    """

    root: str
    folder: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt.

    state     done; skipped: its records exist; busy: another sweep runs it; failed; stopped: on request
    message   about a failure, one line
    final     whether another attempt is pointless
    """

    state: str
    message: str = ""
    final: bool = False


class Running:
    """The commands that this process's threads are running, so that they can be stopped."""

    def __init__(self) -> None:
        self._lock, self.stopped = threading.Lock(), False
        self._processes: set[subprocess.Popen] = set()

    def add(self, process: subprocess.Popen) -> None:
        with self._lock:
            self._processes.add(process)
            if self.stopped:
                process.terminate()

    def remove(self, process: subprocess.Popen) -> None:
        with self._lock:
            self._processes.discard(process)

    def stop(self) -> None:
        """Terminate all current and future runs, wait for them to save, and kill any that exceed STOP_SECONDS."""
        with self._lock:
            self.stopped, processes = True, list(self._processes)
            for process in processes:
                process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for process in processes:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def attempt(job: Job, place: Place, running: Running | None = None) -> Outcome:
    """Run the missing part of a job, unless another process runs it. A failing run never raises an exception.

    The lock is next to the job's records, where every other sweep sees it. The run inherits it: if this process is
    killed while the run survives, no other sweep starts it again.
    """
    running = running or Running()
    if running.stopped:
        return Outcome(STOPPED)
    lock = Path(job.folder) / LOCKS / f"{job.digest}.lock"
    try:
        descriptor = locks.try_lock(lock)
        if descriptor is None:
            return Outcome(BUSY)
        try:
            return _attempt(job, place, running, descriptor)
        finally:
            locks.unlock(lock, descriptor)
    except UserError as error:
        return Outcome(FAILED, str(error), final=True)


def _attempt(job: Job, place: Place, running: Running, lock: int) -> Outcome:
    values = missing(job)
    if not values:
        return Outcome(SKIPPED)
    start = time.monotonic()
    code, errors = _run(job.command(values), place, running, lock)
    if running.stopped and code != 0:
        return Outcome(STOPPED)
    if code == 0 and not missing(job):
        failure_path(job, place).unlink(missing_ok=True)
        timings.note(place.folder, job, len(values), time.monotonic() - start)
        return Outcome(DONE)
    message = _message(code, errors)
    if code == 0:
        message = "ended without an error and without its record"
    about = {"exit_code": code, "seconds": round(time.monotonic() - start, 1), "stderr": errors}
    write_failure(job, place, message, job.command(values), **about)
    return Outcome(FAILED, message, final=code == BAD_INPUT)


def _run(command: list[str], place: Place, running: Running, lock: int) -> tuple[int, list[str]]:
    """Run a script to its end. Return the exit code (negative: the signal) and the last lines of stderr."""
    process = subprocess.Popen(
        [sys.executable, with_parent.__file__, str(os.getpid()), sys.executable, *command],
        cwd=place.root,
        env={**os.environ, **place.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=(lock,),
        start_new_session=True,  # Ctrl-C must reach only the driver, which then stops its runs
    )
    assert process.stderr, "a pipe, as asked for"
    running.add(process)
    try:
        tail = deque((line.rstrip() for line in process.stderr), maxlen=TAIL_LINES)
        return process.wait(), list(tail)
    finally:
        if process.poll() is None:  # an exception in this process: do not release the lock while the run lives
            process.terminate()
            process.wait()
        process.stderr.close()
        running.remove(process)


def _message(code: int, errors: list[str]) -> str:
    """Return one line with the reason for a failure."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return next((line.strip() for line in reversed(errors) if line.strip()), f"exit code {code}")


def failure_path(job: Job, place: Place) -> Path:
    """Return the path of a job's failure record, whether or not it exists."""
    return Path(place.folder) / "failed" / f"{job.digest}.json"


def write_failure(job: Job, place: Place, message: str, command: list[str], **about: Any) -> Path:
    """Write a failure record: message, command to try by hand, stderr, attempts so far. Return its path."""
    path = failure_path(job, place)
    before = files.read_json(path, required=("attempts",))["attempts"] if path.exists() else 0
    record: dict[str, Any] = {"job": job.name, "message": message, "command": shlex.join(["python", *command])}
    record |= {"identity": dict(job.identity), "attempts": before + 1, "host": socket.gethostname()}
    return files.write_json(path, {**record, **about})
