"""A tiny dataset and tiny models for training steps that take milliseconds."""

import pytest
import torch

from tinymem.data.build import build_dataset
from tinymem.data.settings import DataSettings
from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.training.settings import RunSettings, TrainingSettings


@pytest.fixture(scope="session")
def tiny_settings() -> RunSettings:
    sizes = dict(num_7=60, num_2=10, num_3=10, num_4=10, num_5=10, num_test=4, num_noise=8)
    lengths = dict(length=5, max_ctx=24, prompt_tokens=8, continuation_tokens=8)
    return RunSettings(
        data=DataSettings(**sizes, **lengths),
        model=ModelSettings(n_layers=2, n_embd=16, n_heads=2),
        training=TrainingSettings(epochs=2, checkpoint_every=1, batch_size=16, train_microbatch=8),
    )


@pytest.fixture(scope="session")
def tiny_dataset(tiny_settings):
    return build_dataset(tiny_settings.data)


@pytest.fixture
def make_model(tiny_settings, tiny_dataset):
    """make_model(): the same freshly initialised model each time."""
    return lambda: new_model(tiny_settings.model, tiny_dataset.vocabulary_size, tiny_settings.data.max_ctx, seed=3)


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small for a second thread, which on a busy machine makes a step wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
