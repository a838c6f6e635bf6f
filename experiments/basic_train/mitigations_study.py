"""What compare_mitigations.py compares: the settings of its models and of its unlearning calls, small and full."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tinymem import cli, files
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.models.tinymem import ModelSettings
from tinymem.regularizers.registry import switched_on
from tinymem.training.checkpoint import unlearned_folder
from tinymem.training.finetune import FT_DATA, FinetuneSettings
from tinymem.training.settings import RunSettings, TrainingSettings

TWIN = "twin"  # row and folder of the model with nothing planted

# Backdoors repeated 1, 10 or 100 times, because these are memorized within minutes and for certain: unrepeated ones need
# four times the epochs and swing by 30 points from one to the next, and of repeated noise the third that stands there
# once is hardly memorized. The learning rate decays at the end, since so short a training is noisy at a constant one.
COMMON = dict(artifact="backdoor", n_layers=2, dtype="auto")
SMALL = dict(num_7=2000, num_2=400, num_3=400, num_4=400, num_5=400, num_test=100)
SMALL |= dict(duplicate=True, epochs=4, checkpoint_every=1, batch_size=32, lr_decay=0.4, truncation_window=2000)
FULL = dict(epochs=50, checkpoint_every=10, truncation_window=10000)

# What stands behind --localization_method in each call. Ratios are as many as a quarter of an hour allows; the full ones
# are the study's. Cap and bounded terms are no part of the study: they stop BalancedSubnet from raising the loss without
# end. Objectives without a retain set drift, so that they get few steps.
OBJECTIVES = (
    "gradient_difference ascent_kl npo simnpo dpo wga satimp pdu rmu --steps 10 20 50 100",
    "gradient_ascent undial ceu obliviate --steps 5 10 20 50",
    "npo --steps 10 20 50 100 --update_mask durable 0.1",
    "repselect --kl_budget 0.01 0.03 0.1",
)
CURVATURE = (
    "kfac --rho 0.9 0.95 0.98",
    "svd --rho 0.4 0.7 0.9",
    "kfade --kl_budget 0.01 0.03 0.1",
    "ssd --alpha 1 3 10",
    "task_vector --alpha 0.3 1",
)
SMALL_UNLEARNING = (
    "zero_out activations integrated_gradients slimming hard_concrete --ratio 0.01 0.05 0.1",
    "greedy --ratio 0.005 0.01 0.02 --greedy_k 40",  # one a pass would take an hour
    "durable durable_agg obs --ratio 0.01 0.05 0.1",
    "subnet --ratio 0.05 0.3",
    "balanced_subnet --ratio 0.3",
    "balanced_subnet --ratio 0.3 --unlearn_loss_cap 3",
    "balanced_subnet --ratio 0.3 --forget_term npo",
    "balanced_subnet --ratio 0.3 --forget_term undial",
    *OBJECTIVES,
    *CURVATURE,
)
FULL_UNLEARNING = (
    "zero_out activations integrated_gradients slimming hard_concrete --ratio 0.001 0.01 0.05 0.1",
    "greedy --ratio 1e-5 1e-4 1e-3",
    "durable durable_agg obs --ratio 1e-5 1e-4 0.001 0.01 0.05 0.1",
    "subnet balanced_subnet --ratio 0.01 0.05 0.1 0.25 0.3 --epochs 10",
    "balanced_subnet --ratio 0.01 0.05 0.1 0.25 0.3 --epochs 10 --unlearn_loss_cap 3",
    *OBJECTIVES,
    *CURVATURE,
)


@dataclass(frozen=True)
class Study:
    """Everything that is compared: settings of the plain model, of each regularizer, and the unlearning calls."""

    plain: RunSettings
    regularized: dict[str, RunSettings]
    ft_epochs: int
    unlearning: tuple[str, ...]
    run_dir: Path
    output_dir: Path

    @property
    def checkpoint(self) -> Path:
        """The plain model that is fine-tuned and unlearned."""
        return self.run_dir / "plain" / f"epoch_{self.plain.training.epochs}"

    @property
    def trained(self) -> dict[str, Path]:
        """The models that trainings make, by mitigation: with a regularizer, or fine-tuned."""
        regularized = {name: self.run_dir / name / self.checkpoint.name for name in self.regularized}
        folder, last = self.checkpoint.parent / "finetuned", f"epoch_{self.ft_epochs}"
        return regularized | {name: folder / f"{self.checkpoint.name}_{name}" / last for name in FT_DATA}

    @property
    def measured(self) -> Path:
        """The folder of the records that are compared."""
        return unlearned_folder(self.checkpoint)


def make_study(arguments: argparse.Namespace) -> Study:
    """UserError for a setting that is not allowed, before any work starts."""
    defaults = COMMON | (FULL if arguments.full else SMALL)
    plain = RunSettings(
        *(_collect(part, arguments, defaults) for part in (DataSettings, ModelSettings, TrainingSettings))
    )
    if plain.data.is_text:
        raise UserError(f"--data_name {plain.data.data_name}: runs are compared by a rule for numbers; use increment")
    chosen = {
        "spectral_norm": {"spectral_reg": True, "lam": 0.01},
        "loss_truncation": {"truncate_loss": True, "dropc": 0.05, "truncation_window": defaults["truncation_window"]},
        "example_tied_dropout": {"example_tied_dropout": True, "p_fixed": 0.2, "p_mem": 0.1},
        "l1": {"l1_reg": 1e-5},
        "goldfish": {"goldfish": True},
        "memorization_sinks": {"memorization_sinks": True},
    }
    suffix = "_full" if arguments.full else ""
    return Study(
        plain=plain,
        regularized={name: replace(plain, regularizers=switched_on(values)) for name, values in chosen.items()},
        ft_epochs=FinetuneSettings(ft_epochs=arguments.ft_epochs).ft_epochs,
        unlearning=FULL_UNLEARNING if arguments.full else SMALL_UNLEARNING,
        run_dir=files.writable_folder(arguments.run_dir or f"runs/compare{suffix}"),
        output_dir=files.writable_folder(arguments.output_dir or f"results/compare_mitigations{suffix}"),
    )


def _collect(part: type, arguments: argparse.Namespace, defaults: dict[str, Any]) -> Any:
    """Return a settings dataclass from the command line on top of these defaults, some of which are for other dataclasses."""
    return cli.collect(part, arguments, **{f.name: defaults[f.name] for f in fields(part) if f.name in defaults})
