"""Pools without Parsl: threads for the tests of the engine, and this process for tests of what a sweep writes."""

import contextlib
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from small import in_process

from tinymem.sweeps import attempt as attempts
from tinymem.sweeps.attempt import Place, Running, attempt
from tinymem.sweeps.job import Job


@dataclass
class ThreadPool:
    """Runs on this machine without Parsl, `workers` at a time."""

    place: Place
    executor: ThreadPoolExecutor
    running: Running = field(default_factory=Running)

    def submit(self, job: Job) -> Future:
        return self.executor.submit(attempt, job, self.place, self.running)

    def stop(self) -> None:
        self.running.stop()


@contextmanager
def thread_pool(place: Place, workers: int) -> Iterator[ThreadPool]:
    """A pool of threads. When the block ends, every run has ended."""
    with ThreadPoolExecutor(workers) as executor:
        pool = ThreadPool(place, executor)
        try:
            yield pool
        except BaseException:
            pool.stop()
            raise


@dataclass
class HerePool:
    """Runs one after the other in this process, which has loaded torch already."""

    place: Place

    def submit(self, job: Job) -> Future:
        future: Future = Future()
        future.set_result(attempt(job, self.place))
        return future

    def stop(self) -> None:
        """Nothing runs between two calls."""


@contextmanager
def here(site: object, jobs: Iterable[Job], place: Place, max_workers: int | None) -> Iterator[HerePool]:
    """What stands in for `tinymem.sweeps.sites.open_pool`, together with `run_here`."""
    yield HerePool(place)


def run_here(command: list[str], *_: object) -> tuple[int, list[str]]:
    """What stands in for `tinymem.sweeps.attempt._run`: the exit code and the last lines of stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            in_process(*command)
        except SystemExit as end:
            return int(end.code or 0), errors.getvalue().splitlines()[-attempts.TAIL_LINES :]
    return 0, []
