"""Locks between processes, on one machine or on several with a common file system.

A lock is a file held with flock(2). The system frees it when the last process that holds it ends, so even a SIGKILL
leaves no stale lock. On file systems and platforms without such locks every request succeeds: files are written
atomically in any case.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tinymem.errors import DiskFull, UserError, full_disk
from tinymem.folders import writable_folder

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]  # a module's name cannot be declared optional

UNSUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
POLL_SECONDS = 0.25
# Do not follow a link, which would overwrite its target, or a pipe, which would block.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def try_lock(path: str | Path) -> int | None:
    """Return the file descriptor that holds the lock, or None while another process holds it.

    A child process that inherits the descriptor holds the lock too. Raise UserError if the file cannot be made, or if
    the name belongs to a link or anything other than a lock file.
    """
    path = Path(path)
    writable_folder(path.parent, flag="")
    while True:
        try:
            descriptor = os.open(path, _FLAGS, 0o666)
        except OSError as error:
            if path.is_symlink():
                raise UserError(f"{path}: is a link, which a lock does not follow; delete it") from None
            kind = DiskFull if full_disk(error) else UserError
            raise kind(f"{path}: cannot be written ({error.strerror})") from None
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            os.close(descriptor)
            raise UserError(f"{path}: is no lock but something else of this name; move it away")
        if not _flock(descriptor):
            os.close(descriptor)
            return None
        if _is_file(path, descriptor):
            with contextlib.suppress(OSError):  # informative only
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return descriptor
        os.close(descriptor)  # its holder removed the file when it was done: lock the new one


def unlock(path: str | Path, descriptor: int) -> None:
    """Release a lock and remove its file."""
    if _is_file(Path(path), descriptor):
        with contextlib.suppress(OSError):
            os.unlink(path)
    os.close(descriptor)


def owner(path: str | Path) -> str:
    """Return the process and host that hold a lock, as text."""
    with contextlib.suppress(OSError):
        return Path(path).read_bytes()[:300].decode(errors="replace") or "another process"
    return "another process"


def unsupported(path: str | Path) -> bool:
    """Return whether this file's file system lacks locks, so that every request succeeds."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in UNSUPPORTED
    except AttributeError:  # no fcntl
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def locked(path: str | Path, on_wait: Callable[[str], None] = lambda owner: None) -> Iterator[None]:
    """Hold the lock within the block. If it is taken, call `on_wait(owner)` once, then wait."""
    descriptor = try_lock(path)
    if descriptor is None:
        on_wait(owner(path))
    while descriptor is None:
        time.sleep(POLL_SECONDS)
        descriptor = try_lock(path)
    try:
        yield
    finally:
        unlock(path, descriptor)


def _flock(descriptor: int) -> bool:
    """Return whether the lock was acquired or the file system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in UNSUPPORTED
    return True


def _is_file(path: Path, descriptor: int) -> bool:
    """Return whether the open file still has this name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:  # it is gone, on NFS as a stale handle
        return False
