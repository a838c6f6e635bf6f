"""Run the jobs of a sweep on any pool of workers until their records exist."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from tinymem.errors import FULL, UserError
from tinymem.sweeps.attempt import BUSY, DONE, FAILED, SKIPPED, STOPPED, Outcome, Place, write_failure
from tinymem.sweeps.job import Job, missing

WAITING = "not run"
LOOK_SECONDS = 0.2  # longest delay in reacting to Ctrl-C
BUSY_SECONDS = 1.0  # interval of checks on a job that another sweep is running
RECORD_SECONDS = 5.0  # interval of checks for new records of running jobs
MAX_FLYING = 1000  # more than any site has workers, few enough to wait for
STOP_SECONDS = 2.0  # longest wait for the outcome of a stopped run
GO_ON = "run the same command again to resume"
NO_WORKER = "NoWorker"  # type name of a pool's exception if no worker starts


class Pool(Protocol):
    """Workers that run attempts.

    submit(job) -> future of its Outcome; an exception in it means that the worker was lost
    stop()      end all running attempts in an orderly way
    """

    def submit(self, job: Job) -> Future: ...

    def stop(self) -> None: ...


@dataclass
class JobState:
    """The state of one job.

    runs       number of records that it has when done
    before     number of records that it had before the sweep
    missing    its values that lack a record
    state      how its last attempt ended; "not run" before the first
    message    why it failed or was not run
    attempts   number of attempts that failed so far
    """

    job: Job
    runs: int
    before: int
    missing: list[Any]
    state: str = WAITING
    message: str = ""
    attempts: int = 0

    @property
    def left(self) -> int:
        """The number of records that are missing."""
        return len(self.missing)

    @property
    def is_done(self) -> bool:
        """Whether all its records exist."""
        return self.state in (DONE, SKIPPED)


@dataclass
class Sweep:
    """A sweep, running or ended.

    jobs      by name, in the order in which they start
    ended     why it ended early; "" if it did not
    stopped   whether it ended because the user asked
    queue     jobs to start
    flying    jobs that are with a worker
    resting   jobs that another sweep is running, with the time of the next check
    """

    jobs: dict[str, JobState]
    ended: str = ""
    stopped: bool = False
    queue: list[JobState] = field(default_factory=list)
    flying: dict[Future, JobState] = field(default_factory=dict)
    resting: list[tuple[float, JobState]] = field(default_factory=list)


def survey(jobs: Sequence[Job]) -> dict[str, JobState]:
    """Return the state of each job by name, using only the records."""
    found = {}
    for job in jobs:
        runs, left = len(job.values), missing(job)
        found[job.name] = JobState(job, runs, runs - len(left), left, WAITING if left else SKIPPED)
    return found


def run_jobs(
    jobs: dict[str, JobState],
    pool: Pool,
    place: Place,
    retries: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    on_end: Callable[[JobState], None] = lambda job_state: None,
    on_records: Callable[[], None] = lambda: None,
) -> Sweep:
    """Run everything that a survey found missing. Call `on_end` with every job that ends.

    retries     further attempts for a job that fails; none if its script rejects the input
    on_records  called every RECORD_SECONDS, after checking running jobs with several records for new ones
    should_stop called several times per second; True ends the sweep and stops its runs in an orderly way
    A full disk ends the sweep in the same way, since every run would fail on it.
    """
    sweep = Sweep(jobs, queue=[job_state for job_state in jobs.values() if not job_state.is_done])
    looked = time.monotonic()
    while not sweep.ended and (sweep.queue or sweep.flying or sweep.resting):
        if should_stop():
            sweep.ended, sweep.stopped = f"stopped; {GO_ON}", True
        else:
            _start(sweep, pool, on_end)
        for future in _landed(sweep):
            _take(sweep, future, place, retries, on_end)
        if time.monotonic() - looked > RECORD_SECONDS:
            _look(sweep)
            on_records()
            looked = time.monotonic()
    if sweep.ended:
        pool.stop()
        wait(sweep.flying, timeout=STOP_SECONDS)
        for future in [future for future in sweep.flying if future.done()]:
            _take(sweep, future, place, 0, on_end)
    if all(job_state.is_done for job_state in jobs.values()):  # the request to stop came after everything was done
        sweep.ended, sweep.stopped = "", False
    return sweep


def _take(sweep: Sweep, future: Future, place: Place, retries: int, on_end: Callable[[JobState], None]) -> None:
    """Record how an attempt ended and decide what follows."""
    job_state = sweep.flying.pop(future)
    outcome = _outcome(future, job_state, place)
    job_state.state, job_state.message = outcome.state, outcome.message
    job_state.attempts += outcome.state == FAILED
    if outcome.state != BUSY:
        job_state.missing = missing(job_state.job)
    if outcome.state == BUSY:
        sweep.resting.append((time.monotonic() + BUSY_SECONDS, job_state))
    elif outcome.state == FAILED and any(reason in outcome.message for reason in FULL):
        sweep.ended = f"{outcome.message}; make room, then {GO_ON}"
        on_end(job_state)
    elif outcome.state == FAILED and outcome.message.startswith(NO_WORKER):
        sweep.ended = f"{outcome.message.removeprefix(NO_WORKER + ': ')}; {GO_ON}"
        on_end(job_state)
    elif outcome.state == FAILED and not outcome.final and job_state.attempts <= retries:
        sweep.queue.append(job_state)
    elif outcome.state != STOPPED:
        on_end(job_state)


def _look(sweep: Sweep) -> None:
    """Update the state of running jobs from their records so far."""
    for job_state in sweep.flying.values():
        if job_state.runs > 1:
            with contextlib.suppress(UserError):  # a damaged record: the job itself reports it
                job_state.missing = missing(job_state.job)


def _start(sweep: Sweep, pool: Pool, on_end: Callable[[JobState], None]) -> None:
    """Submit every job that is ready. Drop jobs that depend on a failed job."""
    now = time.monotonic()
    ready = [job_state for when, job_state in sweep.resting if when <= now]
    sweep.resting = [(when, job_state) for when, job_state in sweep.resting if when > now]
    to_come = {p.job.name for p in (*sweep.queue, *sweep.flying.values(), *ready, *(p for _, p in sweep.resting))}
    held_back, room = [], MAX_FLYING - len(sweep.flying) - len(ready)
    for job_state in sweep.queue:
        needed = [sweep.jobs[name] for name in job_state.job.after if name in sweep.jobs]
        lost = [other.job.name for other in needed if not other.is_done and other.job.name not in to_come]
        if lost:
            job_state.message = f"needs {lost[0]}, which failed"
            on_end(job_state)
        elif room > 0 and all(other.is_done for other in needed):
            ready.append(job_state)
            room -= 1
        else:
            held_back.append(job_state)
    sweep.queue = held_back
    sweep.flying |= {pool.submit(job_state.job): job_state for job_state in ready}


def _landed(sweep: Sweep) -> list[Future]:
    """Return the attempts that have ended. Wait up to LOOK_SECONDS for one."""
    if sweep.flying:
        wait(sweep.flying, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
    else:
        time.sleep(LOOK_SECONDS)
    return [future for future in sweep.flying if future.done()]


def _outcome(future: Future, job_state: JobState, place: Place) -> Outcome:
    """Return how an attempt ended. Write the failure record if its worker was lost."""
    try:
        return future.result()
    except CancelledError:
        return Outcome(STOPPED)
    except Exception as error:  # each kind of pool raises its own type
        if type(error).__name__ == NO_WORKER:
            return Outcome(FAILED, f"{NO_WORKER}: {error}", final=True)
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ... ".join(dict.fromkeys(said[:1] + said[-1:]))  # Parsl's first line says where, the last one why
        message = f"the worker was lost ({type(error).__name__}: {reason})"
        try:
            command = job_state.job.command(job_state.missing)
            lines = "".join(traceback.format_exception(error)).splitlines()
            write_failure(job_state.job, place, message, command, exit_code=None, stderr=lines)
        except UserError as worse:
            return Outcome(FAILED, str(worse), final=True)
        return Outcome(FAILED, message)
