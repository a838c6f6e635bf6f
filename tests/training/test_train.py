import copy
import math
from dataclasses import replace

import pytest
import torch
from small import small_settings

from tinymem.data.build import build_dataset
from tinymem.errors import UserError
from tinymem.models.tinymem import new_model
from tinymem.training.checkpoint import Progress
from tinymem.training.fit import epoch_permutation
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import RunSettings, TrainingSettings, check_same_run
from tinymem.training.train import learning_rate, train, training_step

SETTINGS = small_settings()
SPECIALS = dict(bos_token_id=10, eos_token_id=11, pad_token_id=13)


def fresh():
    return new_model(SETTINGS.model, 14, SETTINGS.data.max_ctx, 0, **SPECIALS)


@pytest.mark.parametrize("ignored_token", [None, 13])
def test_a_step_is_one_step_of_adamw_on_the_mean_loss_whatever_the_microbatch(ignored_token):
    dataset = build_dataset(SETTINGS.data)
    tokens, ids = dataset.sequences[:24], torch.arange(24)
    plain = fresh()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    logits = plain(tokens.long()).logits[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].long().flatten()
    targets = targets if ignored_token is None else targets.where(targets != ignored_token, -100)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    loss.backward()
    optimizer.step()
    for microbatch in (24, 5, 1):
        model, settings = fresh(), TrainingSettings(train_microbatch=microbatch)
        returned = training_step(model, new_optimizer(model, settings), tokens, ids, settings, (), ignored_token)
        assert returned == pytest.approx(loss.item(), rel=1e-5)
        for ours, theirs in zip(model.parameters(), plain.parameters()):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)
            # Adam's first step is the sign of the gradient, so where that is nearly 0 rounding decides.
            clear = theirs.grad.abs() > 1e-4
            torch.testing.assert_close(ours[clear], theirs[clear], atol=1e-6, rtol=1e-4)


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own():
    orders = [epoch_permutation(50, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert all(order.sort().values.equal(torch.arange(50)) for order in orders)
    assert orders[0].equal(orders[3]) and not orders[0].equal(orders[1]) and not orders[0].equal(orders[2])


def test_the_learning_rate_is_constant_or_falls_to_zero_at_the_end():
    constant = TrainingSettings(epochs=4, lr=0.1)
    assert {learning_rate(constant, Progress(epoch=e, step=s), 5) for e in range(4) for s in range(5)} == {0.1}
    falling = replace(constant, lr_decay=0.5)
    rates = [learning_rate(falling, Progress(epoch=e, step=s), 5) for e in range(4) for s in range(5)]
    assert rates == pytest.approx([0.1] * 10 + [0.1 * (10 - i) / 10 for i in range(10)])


def test_a_run_may_grow_unless_its_learning_rate_has_fallen():
    held = RunSettings().flat()
    check_same_run("x", held, held | {"epochs": 99, "checkpoint_every": 3})
    falling = held | {"lr_decay": 0.5}
    with pytest.raises(UserError, match="--epochs 50, not with --epochs 99"):
        check_same_run("x", falling, falling | {"epochs": 99})


def test_a_loss_that_is_not_finite_is_said(tmp_path):
    settings = replace(SETTINGS.training, lr=1e3, epochs=2)
    with pytest.raises(UserError, match="not finite.*lower --lr"):
        train(fresh(), build_dataset(SETTINGS.data), settings, 0, tmp_path, {})


def test_bfloat16_trains_float32_weights(tmp_path):
    settings = replace(SETTINGS.training, dtype="bfloat16", epochs=1)
    model = fresh()
    before = copy.deepcopy(model.state_dict())
    progress = train(model, build_dataset(SETTINGS.data), settings, 0, tmp_path, {})
    assert progress.rows[0]["train_loss"] < math.log(14)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert not torch.equal(before["transformer.wte.weight"], model.transformer.wte.weight)


def test_a_run_cannot_be_made_shorter(tmp_path):
    dataset = build_dataset(SETTINGS.data)
    train(fresh(), dataset, replace(SETTINGS.training, epochs=2), 0, tmp_path, {})
    with pytest.raises(UserError, match="is past epoch 1, in epoch 3"):
        train(fresh(), dataset, replace(SETTINGS.training, epochs=1), 0, tmp_path, {})
