"""`python with_parent.py PID COMMAND ...` becomes COMMAND and receives SIGTERM when its parent PID ends.

The runs of a killed worker and the helpers of a killed driver thus end with it. This works only on Linux; elsewhere
COMMAND runs to its end. COMMAND gets its own session: Ctrl-C in a terminal reaches every process in the foreground
group, and a driver would wait forever for a helper that it ended. This file imports nothing from the package, so it
takes milliseconds.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from linux/prctl.h; kept over exec


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    with contextlib.suppress(PermissionError):  # this process already leads a session
        os.setsid()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before this line
            sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
