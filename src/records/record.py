"""A run is a record: settings, results, seconds, peak memory, versions, device. Finished = the file is there."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.allocator import release_freed_memory
from tinymem.errors import UserError, reading

PARTS = ("settings", "results", "cost", "environment")
PACKAGES = ("tinymem", "torch", "transformers", "numpy")
UNEDITED = "unedited"  # stands for the method in the record of a model before any edit
NEVER_PLANTED = "never_planted"  # the same before memories were planted in it: a reference, not a rival of methods


@dataclass
class Cost:
    """What a block took: seconds, and peak memory of the process (on GPUs: of its tensors on all of them) in GB."""

    seconds: float = 0.0
    peak_memory_gb: float = 0.0

    def __add__(self, later: Cost) -> Cost:
        return Cost(self.seconds + later.seconds, max(self.peak_memory_gb, later.peak_memory_gb))


def record_path(folder: str | Path, settings: dict[str, Any]) -> Path:
    """Where the record of a run with these settings is, or will be."""
    return Path(folder) / "records" / f"{files.digest(settings)}.json"


def read_record(path: Path) -> dict[str, Any]:
    """One record. UserError, with the name of the file, when it is damaged."""
    record = files.read_json(path, required=PARTS)
    for part in PARTS:
        if not isinstance(record[part], dict):
            raise UserError(f"{path}: this file is damaged ({part} is no object); delete it and run again")
    return record


def find_record(folder: str | Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished run, or None. UserError when the file is damaged."""
    path = record_path(folder, settings)
    return read_record(path) if path.exists() else None


def write_record(
    folder: str | Path,
    settings: dict[str, Any],
    results: dict[str, Any],
    cost: Cost,
    device: str,
    values: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the record of a finished run, whole or not at all. Results that are not finite numbers become null.

    values: the per-example values behind the results, as tensors by name; `read_values` reads them.
    """
    path = record_path(folder, settings)
    write_values(path, values)  # first, so that a record that says "finished" has them
    record = {
        "settings": settings,
        "results": {name: _finite(value) for name, value in results.items()},
        "cost": {"seconds": round(cost.seconds, 3), "peak_memory_gb": cost.peak_memory_gb},
        "environment": {**environment(device), "auto_dtype": _auto_precision(device)},
    }
    return files.write_json(path, record)


def write_values(path: Path, values: Mapping[str, Any] | None) -> None:
    """Write tensors by name beside the record at `path`, as .safetensors; None removes those of an earlier run."""
    beside = path.with_suffix(".safetensors")
    if values is None:
        beside.unlink(missing_ok=True)
        return
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in values.items()}
    files.write_file(beside, lambda temporary: save_file(tensors, temporary))


def read_values(path: Path) -> dict[str, Any]:
    """Return the per-example values beside the record at `path`: tensors by name, none where none were kept.

    Raises UserError where the file is damaged.
    """
    beside = path.with_suffix(".safetensors")
    if not beside.exists():
        return {}
    from safetensors.torch import load_file

    with reading(beside, "this file is damaged ({why}); delete it and its record, and run again"):
        return load_file(beside)


def _auto_precision(device: str) -> str:
    """What --dtype auto stands for on a device."""
    import torch

    from tinymem.models.precision import auto_precision

    return auto_precision(torch.device(device))


def environment(device: str) -> dict[str, Any]:
    """Versions and machine, as written into every record. `device`: where it is worked."""
    import torch

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "device": device,
        "processor": _processor(device),
    }


def _processor(device: str) -> str:
    """The name of a GPU, or of this machine's CPU."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:  # Linux; platform.processor() is often empty there
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextmanager
def measured(device) -> Iterator[Cost]:
    """Fills in the cost of the block when it ends. `device`: a torch.device."""
    import torch

    cost = Cost()
    on_gpu = device.type == "cuda"
    if on_gpu:
        for gpu in gpus_in_use():
            torch.cuda.synchronize(gpu)
            torch.cuda.reset_peak_memory_stats(gpu)
    else:
        release_freed_memory()  # or else the block inherits what others have freed before it
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
    """The GPUs on which this process holds memory: a model may be spread over several. Others are left untouched."""
    import torch

    return [gpu for gpu in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(gpu)]


def _reset_peak() -> None:
    """Linux forgets a process's peak when 5 is written here; elsewhere the peak is that of the whole run."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak() -> int:
    """Peak resident memory in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and value - value != 0 else value
