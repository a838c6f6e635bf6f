"""Memory of this machine that this process may still take: what is free, within its container's or job's limit.

A node of a cluster has far more than a job on it was given, and the system kills who takes more than that.
"""

from __future__ import annotations

import resource
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # version 1 of control groups writes a number near 2**63 where there is no limit


def free_on_host() -> int:
    """Return the bytes that are free: the least of the machine's, its control groups' and `ulimit -v`."""
    import psutil

    rooms = [psutil.virtual_memory().available, *_cgroup_rooms(), *_address_space()]
    return max(0, min(rooms))


def _cgroup_rooms(root: Path = CGROUPS, proc: Path = Path("/proc/self/cgroup")) -> list[int]:
    """The room under the limit of every control group that this process is in, of versions 1 and 2, and above it."""
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
    """In a container the path is often that of the host, and its own group is mounted at the top."""
    relative = PurePosixPath(path.lstrip("/"))
    rooms = []
    for group in dict.fromkeys([mount / relative, *(mount / parent for parent in relative.parents), mount]):
        most, used = _number(group / limit), _number(group / usage)
        if most is None or used is None or most >= UNLIMITED:
            continue
        cached = [
            line.split()[1] for line in _text(group / "memory.stat").splitlines() if line.split()[:1] == [reclaimable]
        ]
        rooms.append(most - used + sum(map(int, cached)))  # pages of files, which the system takes back
    return rooms


def _address_space() -> list[int]:
    """What `ulimit -v` leaves."""
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
    """None where there is no such file, or it says "max"."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None
