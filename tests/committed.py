"""What git holds: numbers in the documentation are those of committed results, not of a demo that was run here."""

import csv
import subprocess
from collections.abc import Mapping

from small import ROOT


def committed(path: str) -> str:
    """Return what git's index holds, or the file itself where this is no checkout."""
    shown = subprocess.run(["git", "show", f":{path}"], cwd=ROOT, capture_output=True)
    return (ROOT / path).read_text(encoding="utf-8") if shown.returncode else shown.stdout.decode()


def one_line(path: str) -> str:
    """A committed text with every run of white space as one blank, in which sentences are found."""
    return " ".join(committed(path).split())


def committed_rows(path: str) -> list[dict[str, str]]:
    """The rows of a committed CSV file."""
    return list(csv.DictReader(committed(path).splitlines()))


def worst_excess(row: Mapping[str, str]) -> float:
    """By how much the worst attack that counts exceeds the twin, in a row of leaderboard.csv."""
    names = [name for name in row if name.startswith("excess_") and not name.endswith(("_low", "_high"))]
    return max(float(row[name]) for name in names if name != "excess_interpolate" and row[name])
