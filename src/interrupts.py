"""Handle Ctrl-C, SIGTERM and a closed terminal: end a script at once, or set a flag in code that can save its work.

A KeyboardInterrupt can leave a library half imported, be swallowed by code that catches everything, or abort the
process inside foreign code. Scripts therefore end at once, which is safe because every file is written completely or
not at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT, the shells' convention
AGAIN = "interrupted; run the same command again to resume"
children: set[subprocess.Popen] = set()  # scripts run by this process, which end with it

_ASKING = ("SIGINT", "SIGTERM", "SIGHUP")


def end_at_once(number: int = signal.SIGINT, frame: object = None) -> None:
    """End the process with one line on stderr and exit code 130, after its children."""
    for process in children:
        with contextlib.suppress(OSError):
            process.kill()
    with contextlib.suppress(Exception):  # another thread may be writing, or there is no reader
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        program = os.path.basename(sys.argv[0]) if sys.argv else "python"
        os.write(2, f"\n{program}: {AGAIN}\n".encode(errors="backslashreplace"))
    os._exit(INTERRUPTED)


def watch_start() -> None:
    """Make Ctrl-C end the process at once if a script is importing this library.

    Notebooks, tests and other libraries keep their KeyboardInterrupt, and existing handlers stay.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _imported_by_script():
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, end_at_once)


def _imported_by_script() -> bool:
    """Return whether the first frame outside of Python's import machinery and this library is a running script."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == "__main__":
            return "__file__" in frame.f_globals
        if not name.startswith(("importlib", "_frozen_importlib", "tinymem", "runpy")):
            return False
        frame = frame.f_back
    return False


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within the block, make Ctrl-C (SIGINT), SIGTERM and SIGHUP only set a flag, which the yielded function reads.

    A second signal ends the process at once, which is safe because files are written atomically. SIGHUP, sent when a
    terminal closes, stays ignored under nohup.
    """
    asked = []

    def ask(number, frame):
        asked.append(number)
        signal.signal(number, previous[number])

    numbers = [getattr(signal, name) for name in _ASKING if hasattr(signal, name)]
    ignored = [n for n in numbers if n != signal.SIGINT and signal.getsignal(n) is signal.SIG_IGN]
    previous = {number: signal.signal(number, ask) for number in numbers if number not in ignored}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
