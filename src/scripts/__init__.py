"""The scripts behind the console command `tinymem`: how each is started, with or without a checkout of the repository.

Scripts outside src/ are where the study's repository has them. A wheel contains them as modules of this package (see
setup.py).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]  # the repository, if this is a checkout
MODULE = "-m "


class Script(NamedTuple):
    """A script. start: what follows `python`, with the path relative to the repository. about: one line."""

    start: str
    about: str


SCRIPTS = {
    "train": Script("memorization_in_toy_models.py", "train a model that memorizes, or its never-planted twin"),
    "finetune": Script("ft_toy_model.py", "fine-tune such a model so that it forgets"),
    "unlearn": Script("src/localize/localize_memorization.py", "unlearn such a model and attack the result"),
    "unlearn-lm": Script("src/localize/prod_grad.py", "the same for any causal language model, such as Pythia"),
    "measure": Script("src/localize/measure.py", "measure any model, including one edited by another tool"),
    "find": Script("pythia_mem_data/find_memorized.py", "find which passages of a text a model has memorized"),
    "data": Script("old_data.py", "build the training data and look at it"),
    "sweep": Script("src/localize/localize_hp_sweep.py", "unlearn with every method over a grid, here or on a cluster"),
    "leaderboard": Script("experiments/leaderboard.py", "compare mitigations under equal conditions and rank them"),
    "records": Script("-m tinymem.records", "tables and pages of finished runs: gather, best, pareto, report, rerun"),
    "figures": Script("results/make_figures.py", "draw the study's figures from finished runs"),
}
OUTSIDE = [script.start for script in SCRIPTS.values() if not script.start.startswith(("src/", MODULE))]


def in_checkout() -> bool:
    """Return whether this is a checkout of the repository, with the scripts outside src/."""
    return (ROOT / OUTSIDE[0]).is_file()


def home() -> Path:
    """Return the folder in which a sweep starts its commands: the repository, or without a checkout the working
    folder."""
    return ROOT if in_checkout() else Path.cwd()


def words(path: str) -> list[str]:
    """Return the words after `python` that start a script: its path, or `-m tinymem NAME` without a checkout."""
    name = next((name for name, script in SCRIPTS.items() if script.start == path), None)
    return [path] if name is None or in_checkout() else ["-m", "tinymem", name]


def load(name: str) -> ModuleType:
    """Import the script of a sub-command, which has a function `main`."""
    start = SCRIPTS[name].start
    if start.startswith(MODULE):
        return importlib.import_module(f"{start.removeprefix(MODULE)}.__main__")
    path = Path(start).with_suffix("")
    if start not in OUTSIDE:
        return importlib.import_module(".".join(("tinymem", *path.parts[1:])))
    if not in_checkout():
        return importlib.import_module(f"{__name__}.{path.name}")
    sys.path.insert(0, str(ROOT / path.parent))
    return importlib.import_module(path.name)


def as_commands(text: str) -> str:
    """Return a help text with `tinymem NAME` in place of `python PATH`."""
    for name, script in SCRIPTS.items():
        text = text.replace(f"python {script.start}", f"tinymem {name}")
    return text
