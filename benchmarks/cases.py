"""All cases by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from case import Builder, Sizes
from cases_data import data_cases
from cases_training import training_cases
from cases_unlearning import unlearning_cases

if TYPE_CHECKING:
    import torch


def all_cases(sizes: Sizes, device: torch.device) -> dict[str, Builder]:
    """Return name -> function that builds the case."""
    return training_cases(sizes, device) | unlearning_cases(sizes, device) | data_cases(sizes)
