"""All cases by name."""

from __future__ import annotations

from case import Builder, Sizes
from cases_data import data_cases
from cases_training import training_cases
from cases_unlearning import unlearning_cases


def all_cases(sizes: Sizes) -> dict[str, Builder]:
    """name -> function of a device that builds the case."""
    return training_cases(sizes) | unlearning_cases(sizes) | data_cases(sizes)
