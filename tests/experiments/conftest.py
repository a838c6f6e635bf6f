"""Fixtures of the tests of experiments."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="module")
def backdoor(memorizing_backdoor):
    """A model and its data, of whose planted rows every second one counts as a test trigger: it has memorized some."""
    dataset = memorizing_backdoor.dataset
    test = torch.arange(len(dataset.artifacts)) % 2 == 0
    moved = torch.isin(dataset.order, dataset.artifact_ids[test])
    parts = dict(artifacts=dataset.artifacts.select(~test), artifact_ids=dataset.artifact_ids[~test])
    parts |= dict(test_artifacts=dataset.artifacts.select(test), order=dataset.order[~moved])
    return SimpleNamespace(model=memorizing_backdoor.model, dataset=replace(dataset, **parts))
