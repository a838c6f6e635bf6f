"""The declared search spaces of the leaderboard: the methods' grids, and replacements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinymem.leaderboard.cases import Case
from tinymem.localize.method import Method
from tinymem.sweeps import study
from tinymem.sweeps.grid import Grid
from tinymem.sweeps.hp_grid import SMALL, STUDY, grid_of, large_settings

FT_EPOCHS = (1, 2, 3, 5)
REGULARIZED: dict[str, Grid] = {
    "spectral_norm": study.SPECTRAL_NORM,
    "loss_truncation": {**study.LOSS_TRUNCATION, "truncation_window": (2000,)},
    "example_tied_dropout": {"example_tied_dropout": (True,), "p_fixed": (0.2, 0.5), "p_mem": (0.1, 0.3)},
    "l1": {"l1_reg": (1e-6, 1e-5, 1e-4)},
    "goldfish": {"goldfish": (True,), "goldfish_k": (2, 3, 4, 8)},
    "memorization_sinks": {"memorization_sinks": (True,), "sinks_shared": (0.5, 0.7), "sinks_active": (0.1, 0.3)},
}
# Replacements of methods' grids. Greedy's own grid would take an hour: one weight per pass.
SPACES: dict[str, Grid] = {"greedy": {"ratio": (0.001, 0.005, 0.01, 0.02), "greedy_k": (40,)}}
# Additions to the grids for models trained from scratch: the matrices that a curvature edit may change.
MATRICES: Grid = {"projections": ("both", "in")}
# SVD can keep small shares of the singular values: it needs lower ones than its grid has.
ALSO: dict[str, Grid] = {"kfac": MATRICES, "svd": {**MATRICES, "rho": (0.3, 0.4, 0.5, 0.6, 0.8, 0.95)}}
VARIANTS: dict[str, tuple[str, Grid]] = {  # further entrants: the method, and changes to its space
    "balanced_subnet with cap": ("balanced_subnet", {"unlearn_loss_cap": (1.0, 3.0)}),
    "balanced_subnet, NPO term": ("balanced_subnet", {"forget_term": ("npo",)}),
    "npo on durable's weights": ("npo", {"update_mask": (("durable", "0.1"),)}),
}
# For planted language models. A few of their weights matter a lot, so ratios start at one neuron per layer or one
# weight per matrix. Learning rates suit their size, batches the memory of a laptop.
NEURONS: Grid = {"ratio": (0.0007, 0.0014, 0.002, 0.005)}
WEIGHTS: Grid = {"ratio": (1.2e-6, 3e-6, 1e-5, 1e-4)}
OBJECTIVE: Grid = {"steps": (10, 20, 40), "batch_size": (8,), "lr": (2e-5, 5e-5, 1e-4)}
TOO_LONG = ("zero_out", "integrated_gradients")  # days, hours: one pass per neuron, or per step and neuron
LARGE: dict[str, Grid] = {
    "activations": NEURONS,
    "slimming": {**NEURONS, "epochs": (4,)},
    "hard_concrete": {**NEURONS, "epochs": (4,)},
    "durable": WEIGHTS,
    "durable_agg": WEIGHTS,
    "obs": {"ratio": (3e-8, 3e-7, 1.2e-6, 3e-6), "num_grads": (16,), "block_size": (10,)},
    "greedy": {"ratio": (3e-8, 1e-7, 2e-7), "greedy_k": (5,), "unlearn_share": (0.5,), "batch_size": (32,)},
    "subnet": {"ratio": (0.003, 0.01, 0.03), "batch_size": (32,), "epochs": (2,)},
    "balanced_subnet": {"ratio": (0.005, 0.01, 0.02), "batch_size": (16,), "unlearn_share": (0.5,), "epochs": (3,),
                        "lr": (0.1, 0.15), "loss_weighting": (0.7, 0.9)},
    "kfac": {"projections": ("in",), "rho": (0.6, 0.8, 0.95)},
    "kfade": {"kl_budget": (0.03, 0.1, 0.3)},
    "random_mask": {"ratio": (0.01,)},
}  # fmt: skip
MASKED = 0.05  # share of each matrix that the random mask of a small model drops


def space(method: Method, case: Case) -> dict[str, Sequence[Any]]:
    """Return a method's search space on the models of a case.

    This is the method's grid, or what is declared here. Small cases use the small grid's values except for the
    strength; planted language models use the settings of large models.
    """
    if case.is_planted:
        return {**grid_of(method, STUDY), **large_space(method, case)}
    if method.name in SPACES:
        return dict(SPACES[method.name])
    grid = grid_of(method, STUDY)
    if case.small:
        grid |= {name: values for name, values in grid_of(method, SMALL).items() if name != method.strength}
    return {**grid, **ALSO.get(method.name, {})}


def large_space(method: Method, case: Case) -> dict[str, Sequence[Any]]:
    """Return the changes to a method's grid for planted language models."""
    found: dict[str, Sequence[Any]] = {name: (value,) for name, value in large_settings(method).items()}
    if method.strength == "steps":
        found.update(OBJECTIVE)
    if method.name == "kfac":
        found["layers"] = (late_layers(case.planted.blocks), "last_two")
    return {**found, **LARGE.get(method.name, {})}


def late_layers(blocks: int) -> str:
    """Return, as a setting, the three layers that K-FAC editing's authors edit. They begin at 0.72 of the depth."""
    first = max(0, min(int(0.72 * blocks), blocks - 3))
    return ",".join(map(str, range(first, min(first + 3, blocks))))
