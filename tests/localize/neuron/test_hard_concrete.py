import dataclasses

import pytest
import torch

from tinymem.errors import NotFinite
from tinymem.localize.learning import backward, mean_weights
from tinymem.localize.neuron import gates
from tinymem.localize.neuron.hard_concrete import HyperParameters, expected_openness, sample_gates, score
from tinymem.localize.ranking import neuron_masks
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied

GENTLE = HyperParameters(epochs=2, batch_size=4, lambda_l1=5.0, stop_loss=0.0)


def close(scores, others, tolerance=1e-4):
    return all(torch.allclose(a, b, atol=tolerance) for a, b in zip(scores, others, strict=True))


def draws(log_alpha, rows):
    return sample_gates(torch.tensor(log_alpha).expand(rows, -1), torch.Generator().manual_seed(0))


def test_expected_openness_is_the_share_of_open_draws():
    log_alpha = [-6.0, -3.0, -1.0, 0.0, 0.5, 2.0, 4.0]
    drawn = draws(log_alpha, 100_000)
    assert torch.allclose((drawn > 0).float().mean(0), expected_openness(torch.tensor(log_alpha)), atol=0.005)
    assert drawn.min() == 0 and drawn.max() == 1


def test_draws_follow_the_distribution_of_louizos():
    """P(gate <= x) = sigmoid(beta * logit((x - gamma) / (zeta - gamma)) - log alpha), for x in [0, 1)."""
    drawn = draws([-1.0, 0.7], 100_000)
    for x in (0.0, 0.2, 0.5, 0.9):
        expected = (2 / 3 * torch.tensor((x + 0.1) / 1.2).logit() - torch.tensor([-1.0, 0.7])).sigmoid()
        assert torch.allclose((drawn <= x).float().mean(0), expected, atol=0.006)


def test_draws_are_differentiable_and_finite():
    log_alpha = torch.tensor([-50.0, 0.0, 50.0]).repeat(1000, 1).requires_grad_()
    drawn = sample_gates(log_alpha, torch.Generator().manual_seed(0))
    drawn.sum().backward()
    assert drawn.isfinite().all() and log_alpha.grad.isfinite().all() and (log_alpha.grad[:, 1] > 0).any()


def plain_hard_concrete(model, task, hp):
    """The same without hooks or microbatches: the gates multiply the columns of W_out."""
    mlps, generator = find_mlps(model), task.generator()
    log_alphas = [(0.01 * torch.randn(mlp.inner_dim, generator=generator)).requires_grad_() for mlp in mlps]
    adam = torch.optim.Adam(log_alphas, hp.lr)
    for _ in range(hp.epochs):
        order = torch.randperm(len(task.forget), generator=generator)
        for rows in order.split(hp.batch_size):
            stored = {}
            for mlp, log_alpha in zip(mlps, log_alphas):
                uniform = torch.rand(mlp.inner_dim, generator=generator)
                concrete = torch.sigmoid((uniform.log() - (1 - uniform).log() + log_alpha) * 1.5)
                weight = mlp.output.view() * (1.2 * concrete - 0.1).clamp(0, 1)
                stored[mlp.output.name] = weight.T if mlp.output.transposed else weight
            tokens = task.forget.planted[rows]
            logits = torch.func.functional_call(model, stored, (tokens,)).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            openness = torch.sigmoid(torch.cat(log_alphas) - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1)))
            adam.zero_grad()
            (loss + hp.lambda_l1 * openness.mean()).backward()
            adam.step()
    return [log_alpha.detach().sigmoid() for log_alpha in log_alphas]


def test_equals_plain_autograd(any_model, tiny_task):
    task, hp = tiny_task(), dataclasses.replace(GENTLE, epochs=4, batch_size=10)  # one batch a pass
    assert close(score(any_model, task, hp), plain_hard_concrete(any_model, task, hp), 1e-3)


def test_conv1d_and_linear_give_the_same_scores(tiny_model, tiny_task, linear_twin):
    model = tiny_model()
    assert close(score(model, tiny_task(), GENTLE), score(linear_twin(model), tiny_task(), GENTLE))


def test_microbatches_do_not_matter(tiny_model, tiny_task):
    """All sequences of a batch share one draw of the gates, whichever microbatch they are in."""
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
    scores, losses = score(model, task, dataclasses.replace(GENTLE, epochs=40)), []
    for ranking in (scores, [-s for s in scores]):
        with applied(model, Zeros(neuron_masks(find_mlps(model), ranking, 0.2))):
            losses.append(task.mean_loss(model, task.forget.planted))
    assert losses[0] > losses[1] + 0.3


def test_stopping_ends_all_epochs(tiny_model, tiny_task, monkeypatch):
    """Under lambda 1000 log alpha falls by 0.1 a step; the expected openness is 0.1 at log alpha = -3.8."""
    steps, original = [], gates.backward
    monkeypatch.setattr(gates, "backward", lambda *given: steps.append(given) or original(*given))
    scores = score(tiny_model(), tiny_task(), HyperParameters(epochs=60, batch_size=4))
    assert 36 <= len(steps) <= 45
    assert expected_openness(torch.cat(scores).logit()).mean() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leaves_the_model_as_it_was(any_model, tiny_task, snapshot, dtype):
    any_model.to(dtype).train()
    before, task = snapshot(any_model), tiny_task(forget=1)
    scores = score(any_model, task, GENTLE)
    assert all(s.dtype == torch.float32 and ((0 < s) & (s < 1)).all() and not s.requires_grad for s in scores)
    assert [s.shape for s in scores] == [(mlp.inner_dim,) for mlp in find_mlps(any_model)]
    assert close(scores, score(any_model, task, GENTLE), 0.0)
    assert snapshot(any_model) == before


def test_no_step_with_a_finite_gradient_is_no_ranking(tiny_model, tiny_task):
    model = tiny_model()
    find_mlps(model)[0].output_bias.view().fill_(float("nan"))
    with pytest.raises(NotFinite, match="none of its .* steps had a finite gradient"):
        score(model, tiny_task(), GENTLE)
