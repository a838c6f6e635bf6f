"""Models that really memorize, trained once a session (`make test` has several: one a worker)."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; torch would take them all in each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from small import SMALL_BACKDOOR, small_settings, train_small


@pytest.fixture(scope="session")
def memorizing_noise(tmp_path_factory):
    """A model that has memorized noised sequences. Do not change it."""
    return train_small(small_settings(), tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="session")
def memorizing_backdoor(tmp_path_factory):
    """A model that has memorized a backdoor. Do not change it."""
    return train_small(small_settings(**SMALL_BACKDOOR), tmp_path_factory.mktemp("backdoor"))
