"""`python with_parent.py PID COMMAND ...` becomes COMMAND, which is ended (SIGTERM) when its parent PID has ended.

So a killed worker's run ends with it, and a killed driver's helpers do: none goes on unseen. On Linux; elsewhere
COMMAND just runs to its end. It has a session of its own: Ctrl-C in a terminal goes to every process of a session's
foreground group, and a helper that it ends leaves its driver waiting for an answer that never comes. Nothing of the
package is imported, so this takes milliseconds.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from linux/prctl.h; kept over exec


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    with contextlib.suppress(PermissionError):  # it has one already
        os.setsid()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before this line could be reached
            sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
