"""Master copies: small steps of weights in half precision add up, resume, and leave no trace."""

from functools import partial

import pytest
import torch
from tiny import new_model

from tinymem.models.trainable import frozen
from tinymem.regularizers.protocol import Regularizer
from tinymem.training.fit import Stopped
from tinymem.training.objective import ObjectiveSettings, snapshots, train_objective
from tinymem.training.optimizer import adamw, masters_of
from tinymem.training.step import Side, descend, loss_scale, scaled

HALF = [torch.bfloat16, torch.float16]
SMALL = ObjectiveSettings(steps=(3, 40), batch_size=8, lr=1e-5, warm_up=0, dtype="float32")


def rows(count: int, seed: int) -> Side:
    return Side.of(torch.randint(0, 14, (count, 12), generator=torch.Generator().manual_seed(seed)))


FORGET, RETAIN = rows(6, 1), rows(20, 2)


def loss(model, reference, forget, retain):
    return -forget.losses(model), retain.losses(model)


def half(dtype=torch.bfloat16):
    return new_model("gpt_neox").to(dtype)


def train(model, settings=SMALL, **options):
    return train_objective(model, loss, FORGET, RETAIN, settings, **options)


@pytest.mark.parametrize("dtype", HALF)
def test_steps_of_1e_5_add_up_in_masters_and_vanish_without(dtype):
    """Where two neighbours are 0.0005 (bfloat16) or 0.00006 (float16) apart."""
    ends = []
    for make in (adamw, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.full((3,), 0.1, dtype=dtype))
        optimizer = make([weight], lr=1e-5, weight_decay=0.0)
        for _ in range(1000):
            weight.grad = torch.ones_like(weight, dtype=weight.grad_dtype)
            optimizer.step()
        ends.append(weight.detach().float())
    torch.testing.assert_close(ends[0], torch.full((3,), 0.09), atol=5e-4, rtol=0)
    torch.testing.assert_close(ends[1], torch.full((3,), 0.1), atol=2e-4, rtol=0)


def test_a_training_in_bfloat16_goes_as_far_as_in_float32():
    """Its steps of 1e-4 are below half the distance of two numbers from 0.1 on."""
    start, plain, found, exact = half(), half(), half(), half().float()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in range(40):
        descend(plain, optimizer, lambda model, *sides: loss(model, None, *sides), [FORGET, RETAIN], 64)
    for model in (found, exact):
        for _ in train(model, ObjectiveSettings(**{**vars(SMALL), "lr": 1e-4})):
            pass

    def way(model):
        pairs = zip(model.parameters(), start.parameters())
        return torch.cat([(p.float() - q.float()).detach()[q.abs() > 0.1] for p, q in pairs])

    assert not way(plain).any()
    assert 0.6 < torch.dot(way(found), way(exact)) / way(exact).square().sum() < 1.4


def test_the_weights_are_the_roundings_of_their_masters():
    model = half()
    with frozen(model, list(model.parameters())):
        optimizer = adamw(model.parameters(), lr=1e-3, fused=True)
        descend(model, optimizer, lambda model, side: side.losses(model), [RETAIN], 4)
        masters = masters_of(optimizer)
        assert len(masters) == len(list(model.parameters()))
        for parameter in model.parameters():
            assert masters[parameter].dtype == torch.float32 and parameter.grad is None
            assert torch.equal(parameter, masters[parameter].bfloat16())
    assert all(p.grad_dtype == torch.bfloat16 for p in model.parameters())


def test_gradients_of_microbatches_are_summed_in_float32():
    def gradient(microbatch, model):
        found = []
        with frozen(model, list(model.parameters())):
            optimizer = adamw(model.parameters(), lr=0.0)
            keep = Regularizer(after_backward=lambda: found.extend(p.grad.clone() for p in model.parameters()))
            descend(model, optimizer, lambda m, side: side.losses(m), [RETAIN], microbatch, regularizers=[keep])
        return torch.cat([g.flatten() for g in found])

    one, many = gradient(64, half()), gradient(1, half())
    exact = gradient(64, half().float())
    assert one.dtype == many.dtype == torch.float32
    assert (many - exact).norm() < 0.03 * exact.norm()


def test_float32_weights_have_no_masters():
    model = new_model("gpt_neox")
    assert not masters_of(adamw(model.parameters(), lr=1e-3))


@pytest.mark.parametrize("dtype", HALF)
def test_edits_are_put_back_and_strengths_are_those_of_their_own_runs(dtype):
    model, found = half(dtype), {}
    before = {name: p.tolist() for name, p in model.named_parameters()}
    for steps, edit in snapshots(model, train(model)):
        assert {name: p.tolist() for name, p in model.named_parameters()} == before
        found[steps] = edit.values
    assert {name: p.tolist() for name, p in model.named_parameters()} == before
    assert all(value.dtype == dtype for value in found[3].values())
    ((_, alone),) = snapshots(model, train(model, ObjectiveSettings(**{**vars(SMALL), "steps": (40,)})))
    assert all(torch.equal(alone.values[key], value) for key, value in found[40].items())


def test_a_resumed_training_has_the_masters_of_the_interrupted_one(tmp_path):
    def weights(model):
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    straight = half()
    for _ in train(straight):
        pass
    state, taken, model = tmp_path / "state", [], half()
    calls = dict(on_step=lambda progress, *_: taken.append(1), should_stop=lambda: len(taken) == 2)
    with pytest.raises(Stopped):
        for _ in train(model, state=state, **calls):
            pass
    large = weights(half()).abs() > 0.1  # two steps do not show there, but in the masters
    assert torch.equal(weights(model)[large], weights(half())[large])
    resumed = half()
    for _ in train(resumed, state=state):
        pass
    assert torch.equal(weights(resumed), weights(straight)) and not torch.equal(weights(resumed), weights(half()))


def test_gradients_that_vanish_or_overflow_in_float16_are_scaled(monkeypatch):
    """A mean over many tokens, in a loss that is small besides: float16 has nothing below 6e-8."""
    tiny = lambda model, side: 1e-7 * side.losses(model)  # noqa: E731

    def gradient(model):
        found = []
        with frozen(model, list(model.parameters())):
            keep = Regularizer(after_backward=lambda: found.extend(p.grad.clone() for p in model.parameters()))
            descend(model, adamw(model.parameters(), lr=0.0), tiny, [RETAIN], 64, regularizers=[keep])
        return torch.cat([g.flatten().float() for g in found])

    exact = gradient(half(torch.float16).float())
    assert loss_scale(half(torch.float16), [RETAIN]) == 128 and loss_scale(half(), [RETAIN]) == 1
    monkeypatch.setattr("tinymem.training.step.loss_scale", lambda model, sides: 1.0)
    assert (gradient(half(torch.float16)) - exact).norm() > 0.3 * exact.norm()
    for scale in (2.0**16, 2.0**45):  # the second is too much at first
        monkeypatch.setattr("tinymem.training.step.loss_scale", lambda model, sides: scale)
        assert (gradient(half(torch.float16)) - exact).norm() < 0.03 * exact.norm()


def test_a_gradient_that_overflows_is_taken_again_at_a_smaller_scale_but_never_below_1():
    tried = []

    def attempt(scale, limit):
        tried.append(scale)
        return [torch.tensor([2.0 * scale, scale if scale <= limit else float("inf")])], scale

    for limit, expected in ((64.0, [64.0]), (4.0, [64.0, 4.0]), (3.0, [64.0, 4.0, 1.0])):
        tried.clear()
        (gradient,), last = scaled(partial(attempt, limit=limit), 64.0)
        assert tried == expected and last == expected[-1] and gradient.tolist() == [2.0, 1.0]
    tried.clear()
    (gradient,), _ = scaled(partial(attempt, limit=64.0), 64.0, lambda here: not here and len(tried) < 2)
    assert tried == [64.0, 4.0] and gradient.tolist() == [2.0, 1.0]  # it was too much in another process
    tried.clear()
    (gradient,), _ = scaled(partial(attempt, limit=0.0), 64.0)
    assert tried == [64.0, 4.0, 1.0] and gradient.tolist() == [2.0, float("inf")]  # nothing smaller would help
