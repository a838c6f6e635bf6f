"""The process in which baselines run as they come, since allocator settings apply to a whole process for good.

`run.py` starts it and alternates its calls with its own, so that both see the same machine.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
import json
import os
import subprocess
import sys

import timing
from case import QUICK, Sizes
from cases import all_cases


class Elsewhere:
    """The other end: starts this script and sends requests. A context manager, which ends the process."""

    def __init__(self, quick: bool):
        command = [sys.executable, __file__, *(["--quick"] if quick else [])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *error) -> None:
        self._process.stdin.close()
        self._process.wait()

    def seconds(self, case: str, variant: str) -> float:
        """Return the seconds of one call of a case's variant. Raise RuntimeError if the process has ended."""
        self._process.stdin.write(json.dumps([case, variant]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of the recipe as it comes has ended in {case}, {variant}")
        return float(answer)


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    device = cli.resolve_device("cpu")
    builders = all_cases(QUICK if parser.parse_args().quick else Sizes(), device)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # prints go to stderr, so that stdout has only answers
    name, case = None, None
    for line in sys.stdin:
        asked, variant = json.loads(line)
        if asked != name:
            case = None  # frees the last case before the next is built
            name, case = asked, builders[asked]()
        print(timing.seconds(case.variants[variant], device), file=answers)


if __name__ == "__main__":
    cli.run(main)
