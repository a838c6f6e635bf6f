"""The cost of a run: seconds and peak memory, measured around a block."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from tinymem.allocator import release_freed_memory


@dataclass
class Cost:
    """The cost of a block: seconds, and the process's peak memory in GB (on GPUs: of its tensors on all of them).

    None if unknown, as for an edit that was made elsewhere.
    """

    seconds: float | None = 0.0
    peak_memory_gb: float | None = 0.0

    @property
    def spent(self) -> float:
        """The seconds, 0 if unknown."""
        return self.seconds or 0.0

    def __add__(self, later: Cost) -> Cost:
        """Return the cost of one after the other; unknown if either is."""
        if None in (*astuple(self), *astuple(later)):
            return UNKNOWN
        return Cost(self.seconds + later.seconds, max(self.peak_memory_gb, later.peak_memory_gb))  # type: ignore


UNKNOWN = Cost(None, None)


@contextmanager
def measured(device) -> Iterator[Cost]:
    """Yield a cost that is filled in when the block ends. `device`: a torch.device."""
    import torch

    cost = Cost()
    on_gpu = device.type == "cuda"
    if on_gpu:
        for gpu in gpus_in_use():
            torch.cuda.synchronize(gpu)
            torch.cuda.reset_peak_memory_stats(gpu)
    else:
        release_freed_memory()  # otherwise memory freed before the block would count
        _reset_peak()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        gpus = gpus_in_use() if on_gpu else []
        for gpu in gpus:
            torch.cuda.synchronize(gpu)
        cost.seconds = time.perf_counter() - start
        peak = sum(map(torch.cuda.max_memory_allocated, gpus)) if on_gpu else _peak()
        cost.peak_memory_gb = round(peak / 1e9, 3)


def gpus_in_use() -> list[int]:
    """Return the GPUs on which this process holds memory, since a model may be spread over several."""
    import torch

    return [gpu for gpu in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(gpu)]


def _reset_peak() -> None:
    """Reset the process's peak memory. Only Linux can do this; elsewhere the peak is that of the whole run."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak() -> int:
    """Return the peak resident memory in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
