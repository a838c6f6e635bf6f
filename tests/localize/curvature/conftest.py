"""The curvature methods, and their settings that take a moment on tiny models."""

import pytest
import torch

from tinymem.localize.curvature import kfac, kfade, ssd, svd, task_vector
from tinymem.localize.method import method_of

QUICK = {
    "kfac": dict(rho=(0.7, 0.9)),
    "svd": dict(rho=(0.5, 0.8)),
    "kfade": dict(kl_budget=(0.01, 0.1), kl_sequences=6, newton_steps=2),
    "ssd": dict(alpha=(1.0, 2.0)),
    "task_vector": dict(alpha=(0.5, 1.0), epochs=2, batch_size=4, dtype="float32"),
}
CURVATURE = {method.name: method for method in map(method_of, (kfac, svd, kfade, ssd, task_vector))}


@pytest.fixture(params=CURVATURE)
def method_and_settings(request):
    """Each method in turn, with quick settings of two strengths."""
    method = CURVATURE[request.param]
    return method, method.hyper_parameters(**QUICK[request.param])


@pytest.fixture
def curvature():
    """Name -> method."""
    return CURVATURE


@pytest.fixture
def edits_of():
    """edits_of(method, model, task, hp): strength -> values of the edit, which are kept."""

    def values(method, model, task, hp):
        found = ((value, edit.values) for value, edit in method.run(model, task, hp))
        return {value: {name: tensor.detach().clone() for name, tensor in kept.items()} for value, kept in found}

    return values


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small for a second thread, and sums in another order give other digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
