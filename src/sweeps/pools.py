"""A pool of Parsl workers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tinymem.sweeps.attempt import Place, Running, attempt
from tinymem.sweeps.job import Job

NODE = "node"  # label of the Parsl executor whose workers each have a whole node


@dataclass
class ParslPool:
    """A pool on Parsl's executors, chosen by label: NODE runs the jobs that need a whole node."""

    place: Place
    kernel: Any
    labels: list[str]
    running: Running | None
    apps: dict[str, Any] = field(default_factory=dict)

    def submit(self, job: Job) -> Future:
        from parsl import python_app

        label = next(label for label in self.labels if (label == NODE) == (job.whole_node and NODE in self.labels))
        if label not in self.apps:
            self.apps[label] = python_app(attempt, data_flow_kernel=self.kernel, executors=[label])
        return self.apps[label](job, self.place, self.running)

    def stop(self) -> None:
        """Stop the runs of threads. Other workers end when the pool closes, and their runs with them (SIGTERM)."""
        if self.running is not None:
            self.running.stop()


@contextmanager
def parsl_pool(place: Place, config: Any) -> Iterator[ParslPool]:
    """Open a pool with a `parsl.config.Config`. Its workers and helpers end with the block."""
    from parsl.dataflow.dflow import DataFlowKernel
    from parsl.executors import ThreadPoolExecutor as ParslThreads

    in_threads = all(isinstance(executor, ParslThreads) for executor in config.executors)
    kernel = DataFlowKernel(config)
    pool = ParslPool(place, kernel, [e.label for e in config.executors], Running() if in_threads else None)
    try:
        yield pool
    except BaseException:
        pool.stop()
        raise
    finally:
        kernel.cleanup()
