"""Memory: what the savings may not change."""

import pytest
import torch
from methods import masks_of, quick

from tinymem.localize.learning import frozen, gradients, loss_scale, mean_weights
from tinymem.localize.registry import METHODS, STUDY

QUICK = dict(epochs=2, batch_size=8, num_grads=6, ig_steps=3, ratio=(0.05,), dtype="float32", greedy_k=5)


def settings(method, **changes):
    return quick(method, **QUICK | ({"ratio": (0.004,)} if method.nested else {}) | changes)


def masks(method, model, task, **changes):
    return masks_of(method, model, task, settings(method, **changes))


@pytest.mark.parametrize("name", STUDY)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_gradient_checkpointing_changes_nothing(tiny_model, tiny_task, snapshot, name, architecture):
    model, method = tiny_model(architecture), METHODS[name]
    before = snapshot(model)
    plain, saving = (masks(method, model, tiny_task(gradient_checkpointing=g, microbatch=4)) for g in (False, True))
    assert plain.keys() == saving.keys() and all(torch.equal(plain[key], saving[key]) for key in plain)
    assert snapshot(model) == before and not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", STUDY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_drops_nearly_the_same(tiny_model, tiny_task, name, dtype):
    """Against the same rounded weights in float32: scores are float32, so only rounded activations differ."""
    method, half = METHODS[name], tiny_model("gpt_neox").to(dtype)
    full = tiny_model("gpt_neox").to(dtype).float()
    changes = {"ratio": (0.004,)} if method.nested else {"ratio": (0.2,)}
    exact, rounded = (masks(method, model, tiny_task(microbatch=4), **changes) for model in (full, half))
    marked = sum(int(mask.sum()) for mask in exact.values())
    both = sum(int((exact[key] & rounded[key]).sum()) for key in exact)
    assert marked > 0 and both >= 0.6 * marked  # by chance: a fifth of them, or next to none


def gradients_of(model, task, weights):
    parameters = list(model.parameters())
    with frozen(model, parameters):
        return gradients(model, task, task.retain, weights, parameters)


def test_small_float16_gradients_do_not_vanish(tiny_model, tiny_task):
    """A mean over very many tokens: every gradient is below float16's smallest number, 6e-8."""
    model, task = tiny_model("gpt_neox").half(), tiny_task(microbatch=8)
    weights = 1e-9 * mean_weights(task, task.retain)
    exact = gradients_of(tiny_model("gpt_neox").half().float(), task, weights)
    found = gradients_of(model, task, weights)
    for a, b in zip(exact, found):
        assert b.dtype == torch.float32 and a.abs().max() < 6e-8
        assert (a - b).norm() <= 0.05 * a.norm()
    assert 1 <= (weights * loss_scale(model, weights)).max() < 2 and loss_scale(model.float(), weights) == 1


def test_float16_gradients_that_overflow_are_taken_again(tiny_model, tiny_task, monkeypatch):
    model, task = tiny_model("gpt_neox").half(), tiny_task(microbatch=8)
    weights = mean_weights(task, task.retain)
    exact = gradients_of(tiny_model("gpt_neox").half().float(), task, weights)
    monkeypatch.setattr("tinymem.localize.learning.loss_scale", lambda model, weights: 2.0**22)
    found = gradients_of(model, task, weights)
    assert all(b.isfinite().all() and (a - b).norm() <= 0.05 * a.norm() for a, b in zip(exact, found))


@pytest.mark.parametrize("microbatch, dtype", [(2, torch.float32), (64, torch.bfloat16)])
def test_gradients_are_float32_as_soon_as_they_are_added_up(tiny_model, tiny_task, microbatch, dtype):
    model, task = tiny_model("gpt_neox").bfloat16(), tiny_task(microbatch=microbatch)
    assert {g.dtype for g in gradients_of(model, task, mean_weights(task, task.retain))} == {dtype}


@pytest.mark.parametrize("parameters, momentum", [(10**9 - 1, 0.9), (10**9, 0.0)])
@pytest.mark.parametrize("name", ["subnet", "balanced_subnet"])
def test_large_models_do_without_momentum(parameters, momentum, name):
    method = METHODS[name]
    assert method.resolve(method.hyper_parameters(), parameters).momentum == momentum
    assert method.resolve(method.hyper_parameters(momentum=0.5), parameters).momentum == 0.5
