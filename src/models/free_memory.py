"""Free memory that this process may still use, within the limits of its machine, container and job.

A cluster node has far more memory than a job on it may use, and the system kills a job that exceeds its limit.
"""

from __future__ import annotations

import resource
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # version 1 of control groups writes a number near 2**63 if there is no limit


def free_on_host() -> int:
    """Return the free bytes: the minimum over the machine, its control groups and `ulimit -v`."""
    import psutil

    rooms = [psutil.virtual_memory().available, *_cgroup_rooms(), *_address_space()]
    return max(0, min(rooms))


def _cgroup_rooms(root: Path = CGROUPS, proc: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return the free bytes under the limits of this process's control groups (versions 1 and 2) and their parents."""
    rooms = []
    for line in _text(proc).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "":
            rooms += _rooms(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _rooms(root / "memory", path, *names)
    return rooms


def _rooms(mount: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[int]:
    """Return the free bytes of a group and its parents. A container's path is often the host's: try the top too."""
    relative = PurePosixPath(path.lstrip("/"))
    rooms = []
    for group in dict.fromkeys([mount / relative, *(mount / parent for parent in relative.parents), mount]):
        most, used = _number(group / limit), _number(group / usage)
        if most is None or used is None or most >= UNLIMITED:
            continue
        cached = [
            line.split()[1] for line in _text(group / "memory.stat").splitlines() if line.split()[:1] == [reclaimable]
        ]
        rooms.append(most - used + sum(map(int, cached)))  # pages of files, which the system reclaims
    return rooms


def _address_space() -> list[int]:
    """Return the bytes that `ulimit -v` leaves, empty without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    sizes = [line.split()[1] for line in _text(Path("/proc/self/status")).splitlines() if line.startswith("VmSize:")]
    return [limit - 1024 * int(size) for size in sizes]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is no such file, or if it says "max"."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None
