"""A pool without Parsl, for the tests of the engine."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

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
