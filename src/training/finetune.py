"""The data for fine-tuning a trained model so that it forgets its artifacts (the study, section 4.2)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from tinymem.data.dataset import MemorizationDataset
from tinymem.errors import UserError
from tinymem.options import option, settings
from tinymem.records.identity import FINETUNE
from tinymem.training.settings import RunSettings

FT_DATA = {
    "clean": "train on the clean twins of the planted sequences",
    "extra": "train on all training data except the planted sequences",
    "both": "train on both of these",
}


@settings
class FinetuneSettings:
    """Fine-tuning"""

    ft_data: str = option(
        "clean",
        "the clean twins of the artifacts, all training data except the artifacts (extra), or both",
        choices=tuple(FT_DATA),
    )
    ft_epochs: int = option(5, "passes over the fine-tuning set", low=1, alias=("--epochs",))

    def marker(self, settings: RunSettings, epoch: int) -> dict[str, Any]:
        """Return the run.json of the fine-tuning, without the model's weights. epoch: the checkpoint's."""
        return {"run": "finetune", **settings.flat(), "epoch": epoch, **asdict(self)}

    def identity(self, settings: RunSettings, epoch: int) -> dict[str, Any]:
        """Return the identity of the record, which is known before the fine-tuning runs. epoch: the checkpoint's."""
        method = {"name": self.ft_data, "ft_epochs": self.ft_epochs}
        return {"kind": FINETUNE, **settings.checkpoint_sections(epoch), "method": method}


def finetuning_dataset(dataset: MemorizationDataset, ft_data: str) -> MemorizationDataset:
    """Return the same dataset with a different training set; the measured sets stay the same.

    ft_data: see FT_DATA. The clean twin of an artifact comes once, however often the artifact was repeated. The example
    ids of clean twins follow those of the training sequences. Raise UserError if there is nothing to train
    on: only artifacts, or artifacts without clean twins.
    """
    if ft_data != "extra" and dataset.kind == "natural":
        raise UserError(f"--ft_data {ft_data}: these artifacts are natural text without clean twins; use extra")
    twins = len(dataset.sequences) + torch.arange(len(dataset.artifacts))
    others = dataset.order[~torch.isin(dataset.order, dataset.artifact_ids)]
    order = {"clean": twins, "extra": others, "both": torch.cat([others, twins])}[ft_data]
    if not len(order):
        raise UserError(f"--ft_data {ft_data}: the training set holds nothing but artifacts; use clean")
    return replace(dataset, sequences=torch.cat([dataset.sequences, dataset.artifacts.clean]), order=order)
