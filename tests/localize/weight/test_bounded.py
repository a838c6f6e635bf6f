"""BalancedSubnet with a bounded forget term: the gradient of a step, and what it learns."""

from itertools import islice

import pytest
import torch
from tiny import new_model, new_task

from tinymem.errors import UserError
from tinymem.localize.learning import frozen, mixed_batches
from tinymem.localize.registry import METHODS
from tinymem.localize.weight.balanced_subnet import HyperParameters, learn
from tinymem.localize.weight.bounded import bounded_step, row_batches
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied


def hp_of(**changes):
    return HyperParameters(**{"epochs": 2, "batch_size": 8, "dtype": "float32", **changes})


def test_rows_come_in_the_order_of_the_unbounded_method():
    task, hp = new_task(), hp_of()
    rows = islice(row_batches(task, hp, task.generator()), 7)
    tokens = islice(mixed_batches(task, hp.batch_size, hp.unlearn_share, task.generator()), 7)
    for (forget, retain), (expected_forget, expected_retain) in zip(rows, tokens):
        assert torch.equal(task.forget.planted[forget], expected_forget)
        assert torch.equal(task.retain[retain], expected_retain)


@pytest.mark.parametrize("microbatch", [2, 64])
def test_the_gradient_of_npo_is_its_formula(microbatch):
    """mean over rows of -(2 / (b T)) log sigmoid(b (S - S_0)), b = 0.1 * 50 / T, against the unmasked model."""
    model, task, hp = new_model("gpt2"), new_task(microbatch=microbatch), hp_of(forget_term="npo", loss_weighting=0.6)
    parameters = [matrix.parameter for mlp in find_mlps(model) for matrix in mlp.matrices]
    rows = torch.tensor([4, 1, 7]), torch.arange(5)

    def losses(tokens):
        logs = model(tokens).logits[:, :-1].log_softmax(-1)
        return -logs.gather(-1, tokens[:, 1:, None]).squeeze(-1)

    with torch.no_grad():
        before = losses(task.forget.planted[rows[0]]).sum(1)
    step, length = bounded_step(model, task, hp), task.forget.planted.shape[1] - 1
    masks = {m.name: torch.rand(m.view().shape) < 0.3 for mlp in find_mlps(model) for m in mlp.matrices}
    with applied(model, Zeros(masks)), frozen(model, parameters):
        found, beta = step(rows, parameters), 0.1 * 50 / length
        assert all(parameter.grad is None for parameter in parameters)
        rise = losses(task.forget.planted[rows[0]]).sum(1) - before
        term = (-2 / (beta * length) * torch.nn.functional.logsigmoid(beta * rise)).mean()
        expected = torch.autograd.grad(0.4 * term + 0.6 * losses(task.retain[rows[1]]).mean(), parameters)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("term", ["npo", "undial"])
def test_masks_are_learned_and_the_model_is_left_alone(term, snapshot):
    model, task = new_model("gpt2"), new_task()
    before, plain = snapshot(model), learn(model, task, hp_of(lr=1.0), 0.2)
    masks = learn(model, task, hp_of(lr=1.0, forget_term=term), 0.2)
    assert snapshot(model) == before and masks.keys() == plain.keys()
    assert any(not torch.equal(masks[key], plain[key]) for key in masks)
    assert all(int(mask.sum()) == round(0.2 * mask.numel() + 1e-9) for mask in masks.values())


def test_a_record_names_the_term_only_where_there_is_one():
    method = METHODS["balanced_subnet"]
    assert "forget_term" not in method.settings(hp_of(), 0.3)
    assert method.settings(hp_of(forget_term="npo"), 0.3)["forget_term"] == "npo"
    with pytest.raises(UserError, match="--unlearn_loss_cap 3.0: only with --forget_term loss"):
        hp_of(forget_term="npo", unlearn_loss_cap=3.0)
