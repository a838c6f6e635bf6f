import dataclasses

import pytest
import torch

from tinymem.data.dataset import Artifacts
from tinymem.errors import UserError
from tinymem.localize import learning
from tinymem.localize.learning import backward, endless_batches, mean_weights
from tinymem.localize.weight import balanced_subnet
from tinymem.localize.weight.balanced_subnet import HyperParameters, batches, learn
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied

EXACT = HyperParameters(momentum=0.9, epochs=2, batch_size=8, lr=1.0, dtype="float32")


def matrices(model):
    return [matrix for mlp in find_mlps(model) for matrix in mlp.matrices]


def gradients(model, task, hp, forget, retain):
    """The gradients of one step, (out, in) per MLP matrix."""
    parameters = [matrix.parameter for matrix in matrices(model)]
    found = learning.gradients(
        model, task, *balanced_subnet._weighted(model, task, hp, forget, retain), parameters, hp.dtype
    )
    return [matrix.view(gradient) for matrix, gradient in zip(matrices(model), found)]


def same(masks, others):
    return masks.keys() == others.keys() and all(torch.equal(masks[name], others[name]) for name in masks)


class PlainKeep(torch.autograd.Function):
    """keep(|score|) by a full sort, its gradient passed straight through."""

    @staticmethod
    def forward(context, magnitude, dropped):
        kept = torch.ones(magnitude.numel())
        kept[magnitude.flatten().sort(stable=True).indices[:dropped]] = 0
        return kept.view(magnitude.shape)

    @staticmethod
    def backward(context, gradient):
        return gradient, None


def plain_balanced_subnet(model, task, hp, ratio):
    """The method written with functional_call, autograd through the scores and torch's SGD; no microbatches."""
    generator, scores = task.generator(), {}
    for matrix in matrices(model):
        out, fan_in = matrix.view().shape
        scores[matrix.name] = ((torch.rand(out, fan_in, generator=generator) * 2 - 1) / fan_in**0.5).requires_grad_()
    names = {matrix.name: matrix for matrix in matrices(model)}
    sgd = torch.optim.SGD(scores.values(), hp.lr, hp.momentum, weight_decay=hp.weight_decay)

    def keep(name):
        return PlainKeep.apply(scores[name].abs(), round(ratio * scores[name].numel()))

    def mean_loss(tokens):
        if not len(tokens):
            return torch.zeros(())
        weights = {name: (m.view() * keep(name)) for name, m in names.items()}
        stored = {name: weight.T if names[name].transposed else weight for name, weight in weights.items()}
        logits = torch.func.functional_call(model, stored, (tokens,)).logits[:, :-1]
        ignored = -100 if task.ignored_token is None else task.ignored_token
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=ignored)

    for forget, retain in batches(task, hp, generator):
        sgd.zero_grad()
        forget_loss, w = mean_loss(forget), hp.loss_weighting
        if hp.unlearn_loss_cap is not None:
            forget_loss = forget_loss.clamp(max=hp.unlearn_loss_cap)
        (-(1 - w) * forget_loss + w * mean_loss(retain)).backward()
        sgd.step()
    return {name: keep(name) == 0 for name in names}


@pytest.mark.parametrize("changes", [{}, {"unlearn_loss_cap": 2.8}, {"momentum": 0.0, "loss_weighting": 0.2}])
@pytest.mark.parametrize("ignored", [None, 13])
def test_equals_plain_autograd(any_model, tiny_task, changes, ignored):
    hp, task = dataclasses.replace(EXACT, **changes), tiny_task(ignored_token=ignored)
    assert same(learn(any_model, task, hp, 0.3), plain_balanced_subnet(any_model, task, hp, 0.3))


@pytest.mark.parametrize("cap", [None, 0.5, 2.8, 3.0])
def test_batches_as_they_are_mixed_equal_plain_autograd(any_model, tiny_task, cap):
    """Most batches have no sequence to retain; above the cap, nothing pulls in these."""
    hp = dataclasses.replace(EXACT, unlearn_share=0.0, unlearn_loss_cap=cap, batch_size=2)
    task = tiny_task(forget=10, retain=2)
    assert same(learn(any_model, task, hp, 0.3), plain_balanced_subnet(any_model, task, hp, 0.3))


def test_conv1d_and_linear_give_the_same_mask(tiny_model, tiny_task, linear_twin):
    model = tiny_model()
    assert same(learn(model, tiny_task(), EXACT, 0.3), learn(linear_twin(model), tiny_task(), EXACT, 0.3))


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_microbatches_do_not_matter(tiny_model, tiny_task, precision, tolerance):
    model, hp = tiny_model(), dataclasses.replace(EXACT, dtype=precision, unlearn_loss_cap=9.0)
    results = []
    for microbatch in (1, 3, 64):
        task = tiny_task(microbatch=microbatch, ignored_token=13)
        results.append(gradients(model, task, hp, task.forget.planted[:5], task.retain[:7]))
    for gradient, *others in zip(*results):
        assert all((gradient - other).norm() <= tolerance * gradient.norm() for other in others)
    if precision == "float32":
        masks = [learn(model, tiny_task(microbatch=microbatch), hp, 0.3) for microbatch in (1, 3, 64)]
        assert same(masks[0], masks[1]) and same(masks[0], masks[2])


def test_bfloat16_gradients_are_those_of_float32_but_rounded(any_model, tiny_task):
    task = tiny_task()
    sides = task.forget.planted, task.retain
    exact = gradients(any_model, task, EXACT, *sides)
    rounded = gradients(any_model, task, dataclasses.replace(EXACT, dtype="bfloat16"), *sides)
    for a, b in zip(exact, rounded):
        assert b.dtype == torch.float32 and not torch.equal(a, b)
        assert (a - b).norm() < 0.05 * a.norm()


def test_above_the_cap_only_the_retain_set_pulls(tiny_model, tiny_task):
    model, task = tiny_model(), tiny_task()
    forget, retain = task.forget.planted, task.retain
    loss = task.mean_loss(model, forget)
    free = gradients(model, task, EXACT, forget, retain)
    below = gradients(model, task, dataclasses.replace(EXACT, unlearn_loss_cap=loss + 0.1), forget, retain)
    above = gradients(model, task, dataclasses.replace(EXACT, unlearn_loss_cap=loss - 0.1), forget, retain)
    model.zero_grad()
    backward(model, task, retain, EXACT.loss_weighting * mean_weights(task, retain))
    assert all(torch.equal(a, b) for a, b in zip(free, below))
    assert all(torch.allclose(a, m.view(m.parameter.grad), atol=1e-6) for a, m in zip(above, matrices(model)))


@pytest.mark.parametrize("forget, retain", [(1, 40), (40, 1), (10, 24), (1, 1)])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.99])
def test_no_side_of_a_batch_is_ever_empty(tiny_task, forget, retain, share):
    task = tiny_task(forget, retain)
    sides = task.forget.planted, task.retain
    hp = HyperParameters(batch_size=8, unlearn_share=share, epochs=2)
    pairs = list(batches(task, hp, task.generator()))
    for forget, keep in pairs:
        assert 1 <= len(forget) <= len(sides[0]) and 1 <= len(keep) <= len(sides[1]) and len(forget) + len(keep) <= 8
    for drawn, whole in zip(zip(*pairs), sides):
        assert {tuple(row.tolist()) for row in torch.cat(drawn)} == {tuple(row.tolist()) for row in whole}


def test_an_epoch_is_one_pass_over_the_larger_set(tiny_task):
    task = tiny_task(forget=10, retain=24)
    for share, steps in [(0.25, 5), (0.5, 6)]:  # 10 sequences, 2 a batch; 24 sequences, 4 a batch
        hp = HyperParameters(batch_size=8, unlearn_share=share, epochs=3)
        assert len(list(batches(task, hp, task.generator()))) == 3 * steps


def test_natural_batches_are_passes_over_both_sets_as_they_are(tiny_task):
    task = tiny_task(forget=3, retain=24)
    pairs = list(batches(task, HyperParameters(batch_size=8, unlearn_share=0.0, epochs=2), task.generator()))
    assert [len(forget) + len(keep) for forget, keep in pairs] == [8, 8, 8, 3] * 2
    assert not all(len(forget) for forget, _ in pairs)  # as in the study's code, some have nothing to forget
    for drawn, whole in zip(zip(*pairs), (task.forget.planted, task.retain)):
        counts = torch.cat(drawn).unique(dim=0, return_counts=True)[1]
        assert len(torch.cat(drawn)) == 2 * len(whole) and (counts % 2 == 0).all()


def test_a_batch_without_a_side_gives_the_gradient_of_the_other(tiny_model, tiny_task):
    model, task = tiny_model(), tiny_task()
    nothing = task.forget.planted[:0]
    found = []
    for capped in (None, 3.0):
        hp = dataclasses.replace(EXACT, unlearn_share=0.0, unlearn_loss_cap=capped)
        found.append(gradients(model, task, hp, nothing, task.retain))
    model.zero_grad()
    backward(model, task, task.retain, EXACT.loss_weighting * mean_weights(task, task.retain))
    for some in found:
        assert all(torch.allclose(a, m.view(m.parameter.grad), atol=1e-6) for a, m in zip(some, matrices(model)))


def test_batches_draw_every_row_equally_often():
    rows = torch.arange(7)[:, None]
    endless = endless_batches(rows, 3, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(endless) for _ in range(14)]).flatten()
    assert drawn.bincount().tolist() == [6] * 7
    assert all(sorted(part.tolist()) == list(range(7)) for part in drawn.split(7))
    with pytest.raises(ValueError):
        next(endless_batches(rows[:0], 3, torch.Generator()))


def test_leaves_the_model_as_it_was_and_repeats_itself(any_model, tiny_task, snapshot):
    before = snapshot(any_model.train())
    masks = learn(any_model, tiny_task(), EXACT, 0.1)
    assert snapshot(any_model) == before
    assert same(masks, learn(any_model, tiny_task(), EXACT, 0.1))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        m.name: round(0.1 * m.view().numel()) for m in matrices(any_model)
    }
    assert not same(masks, learn(any_model, tiny_task(seed=1), EXACT, 0.1))


def test_bfloat16_weights(tiny_model, tiny_task, snapshot):
    model = tiny_model().bfloat16()
    before = snapshot(model)
    masks = learn(model, tiny_task(), EXACT, 0.3)
    assert snapshot(model) == before and all(mask.dtype == torch.bool for mask in masks.values())


def test_forgets_what_it_is_told_and_keeps_the_rest(tiny_model, tiny_task):
    """Unlearn and retain sequences differ in their tokens, so that a mask can tell them apart."""
    model, task = tiny_model(), tiny_task()
    pattern = torch.arange(12)[None] % 4
    forget, keep = pattern.repeat(4, 1), pattern.repeat(8, 1) + 6
    task = dataclasses.replace(task, forget=Artifacts(forget, forget, *[torch.zeros(4).long()] * 2), retain=keep)
    adam, both = torch.optim.Adam(model.parameters(), lr=0.02), torch.cat([forget, keep])
    for _ in range(60):
        adam.zero_grad()
        backward(model, task, both, mean_weights(task, both))
        adam.step()
    hp = dataclasses.replace(EXACT, epochs=60, lr=0.5, unlearn_loss_cap=4.0)
    with applied(model, Zeros(learn(model, task, hp, 0.3))):
        assert task.mean_loss(model, forget) > 1.5 > 0.5 > task.mean_loss(model, keep)


@pytest.mark.parametrize(
    "bad", [{"ratio": (1.0,)}, {"batch_size": 1}, {"unlearn_share": 0.0, "forget_term": "npo"}, {"dtype": "int8"}]
)
def test_hyper_parameters_are_checked(bad):
    with pytest.raises(UserError):
        HyperParameters(**bad)
