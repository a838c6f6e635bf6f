"""The sweep scripts: flags, plans, refusals; and that jobs know the records of the real scripts."""

import runpy
import shutil
import sys

import pytest
from small import ROOT, SMALL_DATA, in_process, script

from tinymem import cli
from tinymem.localize import hp_grid
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings
from tinymem.records.table import load_records
from tinymem.regularizers.registry import switched_on
from tinymem.sweeps.grid import combinations
from tinymem.sweeps.job import missing
from tinymem.sweeps.jobs import Common, checkpoints, find_checkpoint, finetune_job, localize_jobs, train_job
from tinymem.training.finetune import FinetuneSettings
from tinymem.training.settings import RunSettings, TrainingSettings
from tinymem.data.settings import DataSettings
from tinymem.models.tinymem import ModelSettings

HP_SWEEP = "src/localize/localize_hp_sweep.py"
TINYMEM = ["experiments/basic_train/train_sweep.py", "experiments/basic_train/regularizer_sweep.py"]
TINYMEM += ["experiments/ft/ft_sweep.py", "experiments/parsl_localize.py"]
"""


def test_combinations():
    grid = {"a": (1, 2), "both": ({"b": 3, "c": 4}, {"b": 5, "c": 6})}
    assert combinations(grid) == [
        {"a": 1, "b": 3, "c": 4}, {"a": 1, "b": 5, "c": 6}, {"a": 2, "b": 3, "c": 4}, {"a": 2, "b": 5, "c": 6},
    ]  # fmt: skip
    assert combinations({}) == [{}] and combinations({"a": ()}) == []
"""
