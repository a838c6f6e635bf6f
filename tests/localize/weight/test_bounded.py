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
    """mean over rows of -(2 / (b T)) log sigmoid(b (S - S_0)), b = 0.1 * 50 / T, against the unmasked model.

    S and T are of the tokens behind the prompt that are no pads.
    """
    pad = int(new_task().forget.planted[4, 8])
    model, task = new_model("gpt2"), new_task(microbatch=microbatch, pad=pad)
    hp = hp_of(forget_term="npo", loss_weighting=0.6)
    parameters = [matrix.parameter for mlp in find_mlps(model) for matrix in mlp.matrices]
    rows = torch.tensor([4, 1, 7]), torch.arange(5)
    forgotten = task.forget.planted[rows[0]]
    counts = (forgotten[:, 1:] != pad) & (torch.arange(1, 12) >= task.forget.prompt_end[rows[0], None])
    assert len(set(counts.sum(1).tolist())) > 1

    def losses(tokens):
        logs = model(tokens).logits[:, :-1].log_softmax(-1)
        return -logs.gather(-1, tokens[:, 1:, None]).squeeze(-1)

    with torch.no_grad():
        before = (losses(forgotten) * counts).sum(1)
    step, length = bounded_step(model, task, hp), counts.sum(1)
    masks = {m.name: torch.rand(m.view().shape) < 0.3 for mlp in find_mlps(model) for m in mlp.matrices}
    with applied(model, Zeros(masks)), frozen(model, parameters):
        found, beta = step(rows, parameters), 0.1 * 50 / length
        assert all(parameter.grad is None for parameter in parameters)
        rise = (losses(forgotten) * counts).sum(1) - before
        term = (-2 / (beta * length) * torch.nn.functional.logsigmoid(beta * rise)).mean()
        expected = torch.autograd.grad(0.4 * term + 0.6 * losses(task.retain[rows[1]]).mean(), parameters)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_microbatches_do_not_matter_in_bfloat16():
    """Sums over microbatches are in float32: what is left is the rounding of the passes."""
    hp, parts = hp_of(forget_term="npo"), []
    for microbatch in (1, 64):
        model = new_model("gpt2").bfloat16()
        parameters = [matrix.parameter for mlp in find_mlps(model) for matrix in mlp.matrices]
        step = bounded_step(model, new_task(64, 64, microbatch=microbatch), hp)
        with frozen(model, parameters):
            parts.append(torch.cat([part.flatten() for part in step((torch.arange(64), torch.arange(64)), parameters)]))
    assert parts[0].dtype == torch.float32 and (parts[0] - parts[1]).norm() < 0.01 * parts[1].norm()


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
