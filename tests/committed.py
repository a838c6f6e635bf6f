"""What git holds: numbers in the documentation are those of committed results, not of a demo that was run here."""

import subprocess

from small import ROOT


def committed(path: str) -> str:
    """Return what git's index holds, or the file itself where this is no checkout."""
    shown = subprocess.run(["git", "show", f":{path}"], cwd=ROOT, capture_output=True)
    return (ROOT / path).read_text(encoding="utf-8") if shown.returncode else shown.stdout.decode()
