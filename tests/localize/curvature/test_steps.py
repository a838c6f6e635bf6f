"""K-FADE, Selective Synaptic Dampening and task vectors: against dense matrices and loops."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tinymem.errors import NotFinite
from tinymem.localize.curvature import kfade, ssd, task_vector
from tinymem.localize.curvature.factors import bases, collect
from tinymem.localize.curvature.kfade import TRIALS, RetainDrift, largest_step, newton_direction
from tinymem.localize.curvature.layers import chosen_weights
from tinymem.localize.learning import mean_weights
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Weights, applied


def test_the_direction_solves_the_dense_system(any_model, tiny_task):
    """(A + d_A I) (x) (G + d_G I) times the direction, stacked by columns, is the gradient."""
    task, hp = tiny_task(), kfade.HyperParameters()
    weights = chosen_weights(any_model, hp)
    pairs = collect(any_model, task, task.retain, weights)
    for (weight, basis), (A, G) in zip(bases(any_model, task, weights, hp), pairs):
        slope = torch.randn(weight.view().shape, generator=torch.Generator().manual_seed(0))
        direction, bend = newton_direction(slope, basis, 0.1)
        damped = [m + 0.1 * m.diagonal().mean() * torch.eye(len(m)) for m in (A, G)]
        torch.testing.assert_close(damped[1] @ direction @ damped[0], slope, rtol=1e-3, atol=1e-3)
        stacked = direction.T.flatten().double()
        assert bend == pytest.approx(float(stacked @ torch.kron(A, G).double() @ stacked), rel=1e-3)


def test_drift_is_the_mean_divergence(tiny_model, tiny_task):
    model, task = tiny_model(), tiny_task(microbatch=4, ignored_token=5)
    drift = RetainDrift(model, task, 100)
    assert drift() == pytest.approx(0, abs=1e-7)
    before = model(task.retain).logits[:, :-1].softmax(-1)
    model.transformer.h[0].mlp.c_fc.weight.data.mul_(1.5)
    after = model(task.retain).logits[:, :-1].softmax(-1)
    each = (before * (before / after).log()).sum(-1)
    assert drift() == pytest.approx(each[task.retain[:, 1:] != 5].mean().item(), rel=1e-4)
    model.transformer.h[0].mlp.c_fc.weight.data.fill_(torch.nan)
    assert drift() == math.inf


@pytest.mark.parametrize(
    "divergence",
    [
        lambda eta: eta**2,
        lambda eta: 1e-6 * eta**2,
        lambda eta: 1e6 * eta**2 + 1e3 * eta**4,
        lambda eta: eta,
        lambda eta: math.inf if eta > 0.01 else eta**2,
        lambda eta: eta**2 + eta**6,
    ],
)
def test_the_largest_step_within_a_budget(divergence):
    tried = []

    def counted(eta):
        tried.append(eta)
        return divergence(eta)

    step, reached = largest_step(counted, 0.01, 0.0, 0.1)
    assert len(tried) == TRIALS and reached == divergence(step) <= 0.01
    assert reached >= 0.8 * 0.01 or divergence(1.3 * step) == math.inf


def test_a_step_from_where_the_last_one_ended():
    step, reached = largest_step(lambda eta: (0.05 + 2 * eta) ** 2, 0.01, 0.05**2, 3.0)
    assert 0.0095 < reached <= 0.01 and step == pytest.approx(0.025, rel=0.05)
    assert largest_step(lambda eta: 1.0, 0.01, 0.002, 0.1) == (0.0, 0.002)


@pytest.mark.parametrize("newton_steps", [1, 3])
def test_kfade_forgets_within_its_budget(tiny_model, tiny_task, newton_steps):
    model, task = tiny_model(), tiny_task()
    hp = kfade.HyperParameters(kl_budget=(0.001, 0.05), newton_steps=newton_steps, kl_sequences=24, forget_tokens="all")
    drift, before = RetainDrift(model, task, 24), task.mean_loss(model, task.forget.planted)
    rises = []
    for budget, edit in kfade.run(model, task, hp):
        with applied(model, edit):
            assert 0.7 * budget < drift() <= budget
            rises.append(task.mean_loss(model, task.forget.planted) - before)
    assert 0 < rises[0] < rises[1]


def test_kfade_first_step_is_along_the_direction(tiny_model, tiny_task):
    """One step of a tiny budget: all matrices move by the same multiple of their direction."""
    model, task, hp = tiny_model(), tiny_task(), kfade.HyperParameters(kl_budget=(0.01,), forget_tokens="all")
    ((_, edit),) = kfade.run(model, task, hp)
    losses = cross_entropy(model(task.forget.planted).logits[:, :-1].mT, task.forget.planted[:, 1:])
    multiples = []
    for weight, basis in bases(model, task, chosen_weights(model, hp), hp):
        (slope,) = torch.autograd.grad(losses, [weight.parameter], retain_graph=True)
        direction, _ = newton_direction(weight.view(slope), basis, hp.damping)
        moved = weight.view(edit.values[weight.name]) - weight.view()
        multiples.append(float((moved * direction).sum() / direction.square().sum()))
        torch.testing.assert_close(moved, multiples[-1] * direction, rtol=1e-2, atol=1e-4)
    assert min(multiples) > 0 and max(multiples) == pytest.approx(min(multiples), rel=1e-3)


def test_what_the_forget_loss_counts(tiny_task):
    """Prompts of 6 of 12 tokens: the targets from the 7th token on are entries 5 .. 10."""
    task = tiny_task(forget=2)
    torch.testing.assert_close(kfade.forget_weights(task, "all"), mean_weights(task, task.forget.planted))
    weights = kfade.forget_weights(task, "continuation")
    assert not weights[:, :5].any() and weights[:, 5:].flatten().tolist() == pytest.approx([1 / 12] * 12)
    task = tiny_task(forget=3, ignored_token=int(tiny_task(forget=3).forget.planted[0, 8]))
    weights = kfade.forget_weights(task, "continuation")
    assert weights[0, 7] == 0 and weights.sum().item() == pytest.approx(1)
    task = tiny_task(forget=3, pad=int(tiny_task(forget=3).forget.planted[0, 8]))  # of numbers: ignored by no loss
    assert kfade.forget_weights(task, "all")[0, 7] == 0


def test_a_divergence_that_rounds_below_zero_is_none(tiny_model, tiny_task, caplog):
    model, task = tiny_model(), tiny_task()
    hp = kfade.HyperParameters(kl_budget=(1e-12,), newton_steps=3, kl_sequences=1)
    ((_, edit),) = kfade.run(model, task, hp)
    assert 0 <= edit.notes["kl_reached"] <= 1e-12


def test_a_gradient_that_is_not_finite_is_refused(tiny_model, tiny_task):
    """The retain rows, which give the factors, lack the token whose embedding is damaged."""
    model, task = tiny_model("gpt_neox"), tiny_task()
    model.gpt_neox.embed_in.weight.data[13] = torch.nan
    task = replace(task, retain=task.retain.clamp(max=12))
    assert (task.forget.planted == 13).any()
    with pytest.raises(NotFinite, match="its gradient is not finite; its weights are damaged"):
        list(kfade.run(model, task, kfade.HyperParameters()))


def looped_importances(model, task, tokens, weights):
    """One backward pass per row."""
    totals = {weight.name: torch.zeros_like(weight.parameter) for weight in weights}
    for row in tokens:
        losses = cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="none")
        loss = (losses * mean_weights(task, row[None])[0]).sum()
        for weight, gradient in zip(weights, torch.autograd.grad(loss, [w.parameter for w in weights])):
            totals[weight.name] += gradient.square() / len(tokens)
    return {weight.name: weight.view(totals[weight.name]) for weight in weights}


@pytest.mark.parametrize("edited", ["mlp", "linear"])
@pytest.mark.parametrize("microbatch, piece", [(64, 2**24), (3, 1)])
def test_importances_against_a_loop_over_rows(any_model, tiny_task, snapshot, monkeypatch, edited, microbatch, piece):
    monkeypatch.setattr(ssd, "PIECE", piece)
    task, weights = tiny_task(microbatch=microbatch, ignored_token=5), ssd.edited_weights(any_model, edited)
    before = snapshot(any_model)
    found = ssd.importances(any_model, task, task.forget.planted, weights)
    assert snapshot(any_model) == before
    for name, expected in looped_importances(any_model, task, task.forget.planted, weights).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    head = any_model.get_output_embeddings().weight
    assert all(weight.parameter is not head for weight in weights)
    assert len(weights) > len([w for mlp in find_mlps(any_model) for w in mlp.weights]) or edited == "mlp"


def test_dampening_by_hand():
    hp = ssd.HyperParameters(alpha=(2.0,), lam=1.5, exponent=0.5)
    values, to_forget = torch.tensor([1.0, 1.0, -2.0, 3.0, 5.0]), torch.tensor([1.0, 2.0, 9.0, 12.0, 0.0])
    found = ssd.dampened(values, to_forget, torch.tensor([1.0, 1.0, 1.0, 2.0, 0.0]), 2.0, hp)
    expected = [1.0, 1.0, -2 * math.sqrt(1.5 / 9), 3 * math.sqrt(3 / 12), 5.0]
    assert found.tolist() == pytest.approx(expected)
    more = ssd.HyperParameters(lam=100.0)
    assert ssd.dampened(values, to_forget, to_forget / 3, 2.0, more).tolist() == values.tolist()  # never more than 1


@pytest.mark.parametrize("overlap", [False, True])
def test_ssd_compares_the_forget_set_with_all_sequences(tiny_model, tiny_task, overlap):
    model, task, hp = tiny_model(), tiny_task(), ssd.HyperParameters(alpha=(1.0, 1.5))
    weights = ssd.edited_weights(model, "mlp")
    both = torch.cat([task.forget.planted, task.retain])
    if overlap:  # as with --retain all: what is to be forgotten counts once
        task = replace(task, retain=torch.cat([task.retain[:1], task.forget.planted, task.retain[1:]]))
    forget, everything = (looped_importances(model, task, rows, weights) for rows in (task.forget.planted, both))
    for alpha, edit in ssd.run(model, task, hp):
        changed = 0
        for weight in weights:
            expected = ssd.dampened(weight.view(), forget[weight.name], everything[weight.name], alpha, hp)
            torch.testing.assert_close(weight.view(edit.values[weight.name]), expected, rtol=1e-3, atol=1e-6)
            changed += int((expected != weight.view()).sum())
        assert changed


@pytest.mark.parametrize("overlap", [False, True])
def test_ssd_warns_of_an_alpha_that_edits_nothing(tiny_model, tiny_task, overlap, caplog):
    """With 10 sequences to forget and 24 others, I_D is at least 10 / 34 of I_F, which it is where I_R is 0."""
    model, task = tiny_model(), tiny_task(10, 24)
    if overlap:  # as with --retain all
        task = replace(task, retain=torch.cat([task.retain, task.forget.planted]))
    ssd.check(model, task, ssd.HyperParameters(alpha=(1.0, 3.3)))
    assert not caplog.messages
    hp = ssd.HyperParameters(alpha=(3.3, 3.5, 10.0))
    ssd.check(model, task, hp)
    (message,) = caplog.messages
    assert "--alpha 3.5 10 edits nothing with 10 sequences to forget and 24 others" in message and "3.4" in message
    to_forget = torch.ones(1)
    for alpha, edit in ssd.run(model, task, hp):
        remains = ssd.dampened(torch.ones(1), to_forget, to_forget * 10 / 34, alpha, hp)
        assert bool(remains < 1) == (alpha < 3.4)
        if alpha > 3.4:
            known = dict(model.named_parameters())
            assert all(torch.equal(values, known[name]) for name, values in edit.values.items())
    assert len(caplog.messages) == 1


def test_a_task_vector_goes_back_along_the_training(tiny_model, tiny_task):
    model, task = tiny_model(), tiny_task()
    hp = task_vector.HyperParameters(alpha=(0.5, 1.0, 3.0), epochs=5, batch_size=4, lr=1e-3, dtype="float32")
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    vector, before = task_vector.trained_change(model, task, hp), task.mean_loss(model, task.forget.planted)
    assert all(torch.equal(start[name], parameter) for name, parameter in model.named_parameters())
    with applied(model, Weights({name: start[name] + step for name, step in vector.items()})):
        assert task.mean_loss(model, task.forget.planted) < before
    losses = []
    for alpha, edit in task_vector.run(model, task, hp):
        for name, values in edit.values.items():
            torch.testing.assert_close(values, start[name] - alpha * vector[name])
        with applied(model, edit):
            losses.append(task.mean_loss(model, task.forget.planted))
    assert before < losses[0] < losses[1] < losses[2]


def test_a_task_vector_without_embeddings(tiny_model, tiny_task):
    model, hp = tiny_model(), task_vector.HyperParameters(alpha=(1.0,), epochs=1, trained="all_but_embeddings")
    ((_, edit),) = task_vector.run(model, tiny_task(), hp)
    assert torch.equal(edit.values["transformer.wte.weight"], model.transformer.wte.weight)
    assert not torch.equal(edit.values["transformer.h.0.ln_1.weight"], model.transformer.h[0].ln_1.weight)
