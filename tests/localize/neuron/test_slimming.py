import dataclasses

import pytest
import torch

from tinymem.errors import NotFinite
from tinymem.localize.learning import backward, mean_weights
from tinymem.localize.neuron import gates
from tinymem.localize.neuron.gates import gated
from tinymem.localize.neuron.slimming import HyperParameters, score
from tinymem.localize.ranking import neuron_masks
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied

GENTLE = HyperParameters(epochs=2, batch_size=4, lambda_l1=5.0, stop_loss=0.0)


def close(scores, others, tolerance=1e-4):
    return all(torch.allclose(a, b, atol=tolerance) for a, b in zip(scores, others, strict=True))


def count_steps(monkeypatch):
    """A list that grows with every gradient that is taken."""
    steps, original = [], gates.backward
    monkeypatch.setattr(gates, "backward", lambda *given: steps.append(given) or original(*given))
    return steps


def plain_slimming(model, task, hp):
    """The same without hooks or microbatches: coefficients multiply the columns of W_out."""
    mlps, generator = find_mlps(model), task.generator()
    coefficients = [torch.ones(mlp.inner_dim, requires_grad=True) for mlp in mlps]
    adam = torch.optim.Adam(coefficients, hp.lr)
    for _ in range(hp.epochs):
        for rows in torch.randperm(len(task.forget), generator=generator).split(hp.batch_size):
            stored = {}
            for mlp, coefficient in zip(mlps, coefficients):
                weight = mlp.output.view() * (coefficient + (coefficient.clamp(0, 1) - coefficient).detach())
                stored[mlp.output.name] = weight.T if mlp.output.transposed else weight
            tokens = task.forget.planted[rows]
            logits = torch.func.functional_call(model, stored, (tokens,)).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            adam.zero_grad()
            (loss + hp.lambda_l1 * torch.cat(coefficients).abs().mean()).backward()
            adam.step()
    return [coefficient.detach() for coefficient in coefficients]


@pytest.mark.parametrize("lambda_l1", [0.0, 5.0])
def test_equals_plain_autograd(any_model, tiny_task, lambda_l1):
    hp, task = dataclasses.replace(GENTLE, lambda_l1=lambda_l1, batch_size=6), tiny_task(forget=12)
    scores = score(any_model, task, hp)
    assert close(scores, plain_slimming(any_model, task, hp), 1e-3)
    assert [s.shape for s in scores] == [(mlp.inner_dim,) for mlp in find_mlps(any_model)]


def test_conv1d_and_linear_give_the_same_scores(tiny_model, tiny_task, linear_twin):
    model = tiny_model()
    assert close(score(model, tiny_task(), GENTLE), score(linear_twin(model), tiny_task(), GENTLE))


def test_microbatches_do_not_matter(tiny_model, tiny_task):
    tasks = [tiny_task(microbatch=microbatch, ignored_token=13) for microbatch in (1, 3, 64)]
    first, *others = [score(tiny_model(), task, GENTLE) for task in tasks]
    assert all(close(first, other) for other in others)


def test_what_the_unlearn_set_needs_scores_highest(tiny_model, tiny_task):
    """On a model that has learned the forget set by heart, dropping the top hurts it more than dropping the bottom."""
    model, task = tiny_model(), tiny_task(forget=4)
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        adam.zero_grad()
        backward(model, task, task.forget.planted, mean_weights(task, task.forget.planted))
        adam.step()
    scores, losses = score(model, task, dataclasses.replace(GENTLE, epochs=20)), []
    for ranking in (scores, [-s for s in scores]):
        with applied(model, Zeros(neuron_masks(find_mlps(model), ranking, 0.2))):
            losses.append(task.mean_loss(model, task.forget.planted))
    assert losses[0] > losses[1] + 0.3


def test_the_study_s_penalty_moves_all_coefficients_like_a_sign(tiny_model, tiny_task):
    """lambda 1000, Adam lr 0.1: every coefficient loses 0.1 a step."""
    hp = HyperParameters(epochs=1, batch_size=4)  # three steps
    assert close(score(tiny_model(), tiny_task(), hp), [torch.full((32,), 0.7)] * 2, 0.01)


def test_stopping_ends_all_epochs(tiny_model, tiny_task, monkeypatch):
    steps = count_steps(monkeypatch)
    scores = score(tiny_model(), tiny_task(), HyperParameters(epochs=20, batch_size=4))
    assert 9 <= len(steps) <= 11 and torch.cat(scores).abs().mean() < 0.1


def test_without_a_stop_every_pass_is_made(tiny_model, tiny_task, monkeypatch):
    steps = count_steps(monkeypatch)
    score(tiny_model(), tiny_task(), HyperParameters(epochs=6, batch_size=4, stop_loss=0.0))
    assert len(steps) == 18


def test_clipped_coefficients_can_come_back(tiny_model, tiny_task):
    """Without a penalty some coefficients are pushed above 1; with one, and then without, those below 0 return."""
    free = torch.cat(score(tiny_model(), tiny_task(), dataclasses.replace(GENTLE, lambda_l1=0.0)))
    assert free.max() > 1
    pressed = score(tiny_model(), tiny_task(), dataclasses.replace(GENTLE, epochs=20, lambda_l1=1000.0))
    assert torch.cat(pressed).abs().max() < 0.9  # |coefficient| keeps them near 0 instead of running away below it


def test_gated_multiplies_the_neurons_and_goes_away(any_model, snapshot):
    before, mlps, tokens = snapshot(any_model), find_mlps(any_model), torch.arange(12)[None]
    factors = [torch.rand(mlp.inner_dim) for mlp in mlps]
    with torch.no_grad():
        with gated(mlps, factors):
            gated_logits = any_model(tokens).logits
        assert snapshot(any_model) == before
        for mlp, factor in zip(mlps, factors):
            mlp.output.view().mul_(factor)
        assert torch.allclose(gated_logits, any_model(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leaves_the_model_as_it_was(any_model, tiny_task, snapshot, dtype):
    any_model.to(dtype).train()
    next(any_model.parameters()).requires_grad_(False)
    next(any_model.parameters()).grad = torch.ones_like(next(any_model.parameters()))
    before, task = snapshot(any_model), tiny_task(forget=1)
    scores = score(any_model, task, GENTLE)
    assert all(s.dtype == torch.float32 and s.isfinite().all() and not s.requires_grad for s in scores)
    assert close(scores, score(any_model, task, GENTLE), 0.0)
    assert snapshot(any_model) == before


def test_no_weight_collects_a_gradient(tiny_model, tiny_task, monkeypatch):
    model, required, original = tiny_model().train(), [], gates.backward
    monkeypatch.setattr(
        gates,
        "backward",
        lambda *given: required.extend(p.requires_grad for p in model.parameters()) or original(*given),
    )
    score(model, tiny_task(), GENTLE)
    assert required and not any(required)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_no_step_with_a_finite_gradient_is_no_ranking(tiny_model, tiny_task):
    model = tiny_model()
    find_mlps(model)[0].output_bias.view().fill_(float("nan"))
    with pytest.raises(NotFinite, match="none of its .* steps had a finite gradient"):
        score(model, tiny_task(), GENTLE)
