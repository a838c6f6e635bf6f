"""The study's grid of hyper-parameters for every method, and a small one, as data."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from tinymem.localize.registry import METHODS, Method, find_methods
from tinymem.sweeps.grid import Grid, combinations

NEURONS = (0.001, 0.01, 0.05, 0.1)
WEIGHTS = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.25, 0.3)
EPOCHS = (1, 10, 20)
# The study names the ends of this range and 0.7, with which it published its best runs.
LOSS_WEIGHTINGS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

STUDY: dict[str, Grid] = {
    "zero_out": {"ratio": NEURONS},
    "activations": {"ratio": NEURONS},
    "integrated_gradients": {"ratio": NEURONS, "ig_steps": (1, 10, 20)},
    "slimming": {"ratio": NEURONS, "epochs": EPOCHS},
    "hard_concrete": {"ratio": NEURONS, "epochs": EPOCHS},
    "greedy": {"ratio": (1e-5,)},
    "durable": {"ratio": WEIGHTS},
    "durable_agg": {"ratio": WEIGHTS},
    "obs": {"ratio": WEIGHTS},
    "subnet": {"ratio": WEIGHTS, "epochs": EPOCHS},
    "balanced_subnet": {"ratio": WEIGHTS, "epochs": EPOCHS, "loss_weighting": LOSS_WEIGHTINGS},
}

# Two ratios a method, one setting of everything else, and the cheapest: to see every method at work.
SMALL: dict[str, Grid] = {
    **{name: {"ratio": (0.01, 0.05)} for name in ("zero_out", "activations", "durable", "durable_agg")},
    "integrated_gradients": {"ratio": (0.01, 0.05), "ig_steps": (1,)},
    "slimming": {"ratio": (0.01, 0.05), "epochs": (10,)},
    "hard_concrete": {"ratio": (0.01, 0.05), "epochs": (10,)},
    "greedy": {"ratio": (0.001, 0.01), "greedy_k": (80,)},
    "obs": {"ratio": (0.01, 0.05), "num_grads": (64,)},
    "subnet": {"ratio": (0.05, 0.3), "epochs": (10,)},
    "balanced_subnet": {"ratio": (0.05, 0.3), "epochs": (3,)},
}

# What the study changes for large models: scores without momentum and weight decay take a third of the memory.
LARGE_MODELS: dict[str, Mapping[str, Any]] = dict.fromkeys(
    ("subnet", "balanced_subnet"), {"momentum": 0.0, "weight_decay": 0.0}
)


def add_grid_options(parser: argparse.ArgumentParser) -> None:
    """--methods and --ratios."""
    aliases = ", ".join(f"{method.name} ({method.alias})" for method in METHODS.values())
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="METHOD",
                        help=f"all (default), or some of {aliases}")  # fmt: skip
    parser.add_argument("--ratios", nargs="+", type=float, metavar="R", help="instead of each method's in the grid")


def asked_grid(arguments: argparse.Namespace, large_model: bool = False) -> list[tuple[Method, Any]]:
    """The method settings that --methods, --ratios and --small ask for: one job each, with all its ratios."""
    changes = LARGE_MODELS if large_model else {}
    grids = SMALL if arguments.small else STUDY
    return hyper_parameters(grids, find_methods(arguments.methods), arguments.ratios, changes)


def hyper_parameters(
    grids: Mapping[str, Grid],
    methods: Sequence[str],
    ratios: Sequence[float] | None = None,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[tuple[Method, Any]]:
    """Every combination of every method's grid, each with all its ratios: one job each.

    A mapping among a grid's values may have ratios of its own, a tuple, which take the place of the grid's.
    ratios: instead of the grid's; changes: method -> settings put over the grid's. UserError for a value that is not
    allowed.
    """
    found = []
    for name in methods:
        method, grid = METHODS[name], dict(grids[name])
        usual = grid.pop("ratio")
        for settings in combinations(grid):
            settings = {"ratio": usual, **settings, **(changes or {}).get(name, {})}
            settings["ratio"] = tuple(dict.fromkeys(ratios or settings["ratio"]))
            found.append((method, method.hyper_parameters(**settings)))
    return found
