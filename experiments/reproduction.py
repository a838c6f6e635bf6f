"""The runs of reproduce.py as data: the study's models with published numbers, and the methods' settings."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tinymem.records.identity import AS_PUBLISHED
from tinymem.sweeps.grid import Grid
from tinymem.sweeps.study import EXTRA, SEEDS, SMALL, run_settings
from tinymem.training.settings import RunSettings

# as_published.py: its slips; the ratios of zero_out, and the number of memorized sequences that rank its neurons
SLIPS, SLIP_RATIOS, SLIP_SEQUENCES = ("triggers", "zero_out"), (0.01, 0.05, 0.1), 128
PUBLISHED = Path(__file__).resolve().parents[1] / "results" / "published"
Row = dict[str, str]


@dataclass(frozen=True)
class Case:
    """Models that differ only in the seed, each measured at the epochs with published numbers.

    epochs      epochs with published numbers, which are in results/published/tinymem_training.csv
    unlearned   the epoch whose checkpoint every method unlearns, if any; its rows are in tinymem_unlearning.csv
    changed     settings that differ from the study's
    last        seed -> its last epoch, if that is not the last of `epochs`
    """

    artifact: str
    data_name: str
    n_layers: int
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    unlearned: int | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.artifact}_{self.data_name}_{self.n_layers}layers"

    @property
    def title(self) -> str:
        return f"{self.data_name} + {self.artifact}, {self.n_layers} layers"

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that distinguish this case from others."""
        return {"artifact": self.artifact, "data_name": self.data_name, "n_layers": self.n_layers}

    def only(self, seeds: Collection[int]) -> Case:
        """Return the case with only these of its seeds."""
        return replace(self, seeds=tuple(seed for seed in self.seeds if seed in seeds))

    def epochs_of(self, seed: int) -> tuple[int, ...]:
        return tuple(epoch for epoch in self.epochs if epoch <= self.last.get(seed, epoch))

    def settings(self, seed: int, epoch: int) -> RunSettings:
        """Return the settings of the training that ends at this published epoch. The study's sizes are the defaults."""
        until = {"epochs": trained_epochs(epoch), "checkpoint_every": 10, "dtype": "auto"}
        return run_settings({**self.identity, **EXTRA[0], **until, **self.changed, "seed": seed})

    @cached_property
    def published(self) -> list[Row]:
        rows = read_published("tinymem_training.csv")
        return [row for row in rows if self._has(row) and int(row["epoch"]) in self.epochs]

    @cached_property
    def published_unlearning(self) -> list[Row]:
        rows = read_published("tinymem_unlearning.csv")
        return [row for row in rows if self._has(row) and int(row["checkpoint_epoch"]) == self.unlearned]

    def _has(self, row: Row) -> bool:
        return (row["task"], row["data_name"], int(row["n_layers"])) == tuple(self.identity.values())


def trained_epochs(published: int) -> int:
    """Return the number of passes that our model has made at a published epoch.

    The study counts from 0 and measures epoch 0 after the first pass, so its epoch 50 is the 51st. Ours is the 50th,
    like the names of checkpoints; the curves are flat there.
    """
    return max(1, published)


def slip_identity(settings: RunSettings, epoch: int, slip: str, **own: float) -> dict[str, Any]:
    """Return the identity of the records of as_published.py for a checkpoint, however long the training continues.

    own: zero_out's settings. The slip's name distinguishes it from the method itself.
    """
    method = {"name": f"{slip}_as_published", **own}
    return {"kind": AS_PUBLISHED, **settings.checkpoint_sections(epoch), "method": method}


def read_published(name: str) -> list[Row]:
    with open(PUBLISHED / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Feasible on two cores in a few nights: an epoch with two layers takes 1 to 2.5 minutes on both cores, up to 4 on one.
LAPTOP = (
    Case("backdoor", "increment", 2, SEEDS, (0, 50), unlearned=50),
    Case("backdoor", "increment", 4, SEEDS[:1], (0, 50)),
    Case("backdoor", "mult", 2, SEEDS, (0, 50)),
    Case("backdoor", "mult", 4, SEEDS[:1], (0, 50)),
    Case("noise", "increment", 2, SEEDS[:1], (0, 50, 100)),
)


def everything() -> tuple[Case, ...]:
    """Return every number model with published numbers, each seed up to its last published epoch: for a GPU.

    The published numbers of text and production models, and of unlearning at epoch 200, are not compared.
    """
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in read_published("tinymem_training.csv"):
        groups.setdefault((row["task"], row["data_name"], int(row["n_layers"])), []).append(row)
    unlearned = {case.name: case.unlearned for case in LAPTOP}
    cases = []
    for identity, rows in groups.items():
        seeds, epochs = (tuple(sorted({int(row[name]) for row in rows})) for name in ("seed", "epoch"))
        last = {seed: max(int(row["epoch"]) for row in rows if int(row["seed"]) == seed) for seed in seeds}
        cases.append(Case(*identity, seeds, epochs, last=last))
    return tuple(replace(case, unlearned=unlearned.get(case.name)) for case in cases)


# Published best settings, and others of ours: the loss cap of BalancedSubnet and Greedy's half-and-half batches. Some
# were added after first results, to come close to the published point: intermediate ratios of Zero-Out, Slimming, Hard
# Concrete, Greedy and OBS, all but the first of Slimming's other settings, and Subnet's fewer epochs and smaller
# batches.
_NEURONS, _WEIGHTS = (0.01, 0.05, 0.1), (0.001, 0.01, 0.05, 0.1)
UNLEARNING: dict[str, Grid] = {
    "zero_out": {"ratio": (*_NEURONS, 0.004, 0.006, 0.008)},  # two to four neurons per layer
    "activations": {"ratio": _NEURONS},
    "integrated_gradients": {"ratio": _NEURONS},
    "slimming": {
        "ratio": (0.01, 0.02, 0.03, 0.05, 0.1),
        "rest": (
            {"epochs": 1},  # stops after ten steps
            *({"epochs": 1, "stop_loss": stop, "ratio": (0.02, 0.05)} for stop in (0.15, 0.25)),  # nine, eight
            {"epochs": 1, "lambda_l1": 100.0, "ratio": (0.02, 0.05)},
            {"epochs": 20, "lr": 0.01, "ratio": (0.02, 0.05)},
        ),
    },
    "hard_concrete": {"ratio": (0.01, 0.03, 0.04, 0.045, 0.05, 0.053, 0.055, 0.1), "epochs": (20,)},
    "greedy": {
        "ratio": (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.01, 0.05),
        "greedy_k": (10,),  # one per step takes hours
        "rest": ({}, {"unlearn_share": 0.5, "ratio": (0.001, 0.002, 0.005, 0.01)}),
    },
    "durable": {"ratio": _WEIGHTS},
    "durable_agg": {"ratio": _WEIGHTS},
    "obs": {"ratio": (0.001, 0.01, 0.02, 0.0225, 0.025, 0.03, 0.034, 0.036, 0.05, 0.1)},
    "subnet": {
        "ratio": (0.3, 0.25, 0.2, 0.1, 0.05),
        "rest": (
            {"epochs": 2},
            {"epochs": 3},
            {"epochs": 10},
            *({"epochs": 1, "batch_size": n} for n in (64, 48, 46)),
            *({"epochs": 1, "batch_size": n, "ratio": (0.3,)} for n in (42, 38)),
        ),
    },
    "balanced_subnet": {
        "ratio": (0.3,),
        "rest": ({"epochs": 3, "unlearn_loss_cap": 3.0}, {"epochs": 10}),
    },
}
# The published settings, with the batch size that the study states, to which as_published.py applies the differences.
# Greedy, too, drops ten weights per step.
PUBLISHED_SETTINGS: dict[str, dict[str, Any]] = {
    "balanced_subnet": {"ratio": (0.3,), "epochs": 10, "batch_size": 32},
    "subnet": {"ratio": (0.3,), "epochs": 10, "batch_size": 32},
    "slimming": {"ratio": (0.05,), "epochs": 1, "batch_size": 32},
    "hard_concrete": {"ratio": (0.05,), "epochs": 20, "batch_size": 32},
    "greedy": {"ratio": (0.05,), "batch_size": 32, "greedy_k": 10},
    "obs": {"ratio": (0.05,)},
    "activations": {"ratio": (0.05,)},
    "integrated_gradients": {"ratio": (0.05,)},
    "durable": {"ratio": (0.05,)},
    "durable_agg": {"ratio": (0.05,)},
}
# The same steps from planting to report within a minute. No published number uses them.
SMALL_CASES = (Case("backdoor", "increment", 2, (0,), (0, 8), unlearned=8, changed=SMALL[1].grid["rest"][0]),)
SMALL_UNLEARNING: dict[str, Grid] = {
    "activations": {"ratio": (0.05,)},
    "durable": {"ratio": (0.01, 0.05)},
    "balanced_subnet": {"ratio": (0.05,), "epochs": (1,)},
}
