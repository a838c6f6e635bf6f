"""One step: losses on several sides, in microbatches."""

import copy

import pytest
import torch
from sides import FORGET, OBJECTIVES, RETAIN, fresh, npo, rows, weights

from tinymem.training.step import backward, descend, microbatches, next_token_loss


class Before:
    """A reference made without train_objective."""

    def __init__(self, model):
        self.model = copy.deepcopy(model)

    @torch.no_grad()
    def row_sums(self, side):
        return side.row_sums(side.losses(self.model))


def gradients(loss, microbatch: int, sides):
    model = fresh().double()
    reference = Before(model)
    with torch.no_grad():  # a step away from the reference, where no gradient is 0
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    means = backward(model, lambda model, *sides: loss(model, reference, *sides), sides, microbatch)
    return means, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("forget_rows", [6, 1])
def test_the_gradient_of_microbatches_is_that_of_the_whole_batch(loss, forget_rows):
    sides = FORGET.select(torch.arange(forget_rows)), RETAIN.select(torch.arange(7))
    means, whole = gradients(loss, 99, sides)
    assert whole.abs().max() > 1e-3
    for microbatch in (1, 4, 5):
        other_means, split = gradients(loss, microbatch, sides)
        torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other_means, means)


def test_a_value_per_token_is_averaged_over_tokens_and_one_per_row_over_rows():
    side, model = FORGET.select(torch.arange(6)), fresh().double()
    losses, counts = side.losses(model).detach(), side.mask.sum(1)
    assert losses.dtype == torch.float64 and len(set(counts.tolist())) > 1
    by_token = (losses * side.mask).sum() / side.mask.sum()
    by_row = torch.stack([losses[i][side.mask[i]].mean() for i in range(6)]).mean()
    assert not torch.isclose(by_token, by_row)
    per_row = lambda model, side: side.row_means(side.losses(model))  # noqa: E731
    for loss, expected in ((next_token_loss, by_token), (per_row, by_row)):
        assert backward(model, loss, [side], 4).item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"values \(\), not one per row or token"):
        backward(model, lambda model, side: side.losses(model).mean(), [side], 4)


def test_the_gradient_agrees_with_finite_differences():
    model, sides = fresh().double(), [FORGET.select(torch.arange(3)), RETAIN.select(torch.arange(4))]
    loss = lambda model, forget, retain: npo(model, Before(fresh().double()), forget, retain)  # noqa: E731
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1.1)
    backward(model, loss, sides, 2)
    weight, h = model.transformer.h[0].mlp.c_fc.weight, 1e-5
    for place in ((0, 0), (3, 7), (15, 60)):
        value, totals = weight[place].item(), []
        for moved in (value + h, value - h):
            with torch.no_grad():
                weight[place] = moved
                forget, retain = loss(model, *sides)
                totals.append(forget.mean() + (retain * sides[1].mask).sum() / sides[1].mask.sum())
                weight[place] = value
        assert weight.grad[place].item() == pytest.approx(((totals[0] - totals[1]) / (2 * h)).item(), rel=1e-5)


def test_microbatches_keep_their_size_and_hold_every_row_once():
    sides = [FORGET.select(torch.arange(6)), RETAIN.select(torch.arange(18))]
    for size in (2, 4, 7, 24):
        seen = [[], []]
        for parts, needed in microbatches(sides, size):
            assert 2 <= sum(map(len, parts)) <= size and all(map(len, parts))
            for ids, part, wanted in zip(seen, parts, needed):
                ids += part.ids.tolist() if wanted else []
        assert seen == [list(range(6)), list(range(18))]


def test_plain_training_is_the_same_step_whatever_the_number_of_sides_of_other_losses():
    """A batch of both kinds at once is the weighted mean of two sides: the sides are no more than a way to write it."""
    side = rows(8, 5)
    halves = side.select(torch.arange(4)), side.select(torch.arange(4, 8))
    shares = [half.mask.sum() / side.mask.sum() for half in halves]
    found = []
    for sides, loss in (
        ([side], next_token_loss),
        (halves, lambda model, a, b: (shares[0] * a.losses(model), shares[1] * b.losses(model))),
    ):
        model = fresh().double()
        total = sum(descend(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, sides, 3))
        found.append((total, weights(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-9)
