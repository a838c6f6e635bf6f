"""The methods' grids of hyper-parameters, defined in their settings: a full one (the study's) and a small one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tinymem.errors import UserError, renamed
from tinymem.localize.method import Method
from tinymem.localize.registry import GROUPS, METHODS, find_methods
from tinymem.sweeps.grid import Grid, combinations

STUDY, SMALL = "grid", "small"  # keys of an option's metadata with its values
RATIO = "ratio"  # the strength whose values --ratios replaces


def add_grid_options(parser: argparse.ArgumentParser) -> None:
    """Add --methods and --ratios."""
    aliases = ", ".join(method.title for method in METHODS.values())
    parser.add_argument("--methods", nargs="+", default=["study"], metavar="METHOD",
                        help=f"some of {aliases}; {', '.join(GROUPS)} or all; or a file with your method (default: "
                        "study)")  # fmt: skip
    parser.add_argument("--ratios", nargs="+", type=float, metavar="R",
                        help="replace the grid's ratios, for methods whose strength is a ratio")  # fmt: skip


def asked_grid(arguments: argparse.Namespace, large_model: bool = False) -> list[tuple[Method, Any]]:
    """Return the method settings that --methods, --ratios and --small request: one job each, with all its strengths.

    Raise UserError for ratios that are not allowed, or if no method has ratios.
    """
    methods = find_methods(arguments.methods)
    if arguments.ratios and not any(method.strength == RATIO for method in methods):
        raise UserError(f"--ratios: {', '.join(method.name for method in methods)} has no ratio; leave it out")
    grids = {method.name: grid_of(method, SMALL if arguments.small else STUDY) for method in methods}
    changes = {method.name: large_settings(method) for method in methods} if large_model else {}
    with renamed("--ratio", "--ratios"):
        return hyper_parameters(grids, methods, arguments.ratios, changes)


def grid_of(method: Method, which: str = STUDY) -> dict[str, Sequence[Any]]:
    """Return the values in a method's grid by setting. A strength without grid values keeps its defaults."""
    grid: dict[str, Any] = {
        f.name: f.metadata.get(which) for f in fields(method.hyper_parameters) if f.metadata.get(which)
    }
    if method.strength and method.strength not in grid:
        default = next(f.default for f in fields(method.hyper_parameters) if f.name == method.strength)
        grid = {method.strength: default, **grid}
    return grid


def large_settings(method: Method) -> dict[str, Any]:
    """Return the settings of a method that differ from its defaults for large models."""
    changed = {f.name: f.metadata.get("large") for f in fields(method.hyper_parameters)}
    return {name: value for name, value in changed.items() if value is not None}


def hyper_parameters(
    grids: Mapping[str, Grid],
    methods: Sequence[Method],
    ratios: Sequence[float] | None = None,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[tuple[Method, Any]]:
    """Return every combination of every method's grid, each with all its strengths: one job each.

    A mapping among a grid's values may have its own tuple of strengths, which replaces the grid's. ratios: replace the
    grid's. changes: method -> settings that override the grid's. Raise UserError for a value that is not allowed.
    """
    found = []
    for method in methods:
        grid, strength = dict(grids[method.name]), method.strength
        usual = {strength: grid.pop(strength)} if strength else {}
        for combination in combinations(grid):
            settings = {**usual, **combination, **(changes or {}).get(method.name, {})}
            if strength:
                asked = ratios if ratios and strength == RATIO else settings[strength]
                settings[strength] = tuple(dict.fromkeys(asked))
            found.append((method, method.hyper_parameters(**settings)))
    return found
