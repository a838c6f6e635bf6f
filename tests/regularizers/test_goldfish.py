"""Which tokens goldfish loss leaves out: against plain loops on Python's unbounded integers."""

import pytest
import torch

from tinymem.errors import UserError
from tinymem.models.losses import loss_mask
from tinymem.regularizers.goldfish import _BASE, Settings, build, left_out, powers, window_hashes
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.train import training_step

ROWS = torch.randint(0, 14, (40, 60), generator=torch.Generator().manual_seed(0))


def settings(**changes) -> Settings:
    return Settings(goldfish=True, **changes)


def left_out_in_a_loop(row, k, h, seed):
    """One window after another, with the polynomial and splitmix64 written out."""

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    for end in range(len(row)):
        window = row[end - h + 1 : end + 1] if end >= h - 1 else []
        value = sum((token + 1) * _BASE**back for back, token in enumerate(reversed(window))) % 2**64
        bits = mix((value + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 32
        yield bool(window) and bits < 2**32 // k


@pytest.mark.parametrize("k, h, seed", [(4, 13, 0), (3, 5, 7), (2, 1, 2**32 - 1), (32, 60, 1), (4, 61, 1)])
def test_hashed_against_a_loop(k, h, seed):
    found = left_out(ROWS, settings(goldfish_k=k, goldfish_h=h), seed)
    assert found.tolist() == [list(left_out_in_a_loop(row, k, h, seed)) for row in ROWS.tolist()]
    assert not found[:, : h - 1].any()


def test_a_passage_loses_the_same_tokens_wherever_it_stands():
    passage = ROWS[0, :40]
    moved = torch.cat([ROWS[1, :17], passage])
    found = left_out(torch.stack([torch.cat([passage, ROWS[2, :17]]), moved]), settings(), 0)
    assert torch.equal(found[0, 12:40], found[1, 29:57]) and found[0, 12:40].any()  # those with a whole window in it


@pytest.mark.parametrize("strategy", ["hashed", "seeded", "static"])
@pytest.mark.parametrize("k", [2, 4, 32])
def test_one_of_k_is_left_out(strategy, k):
    rows = torch.randint(0, 14, (400, 100), generator=torch.Generator().manual_seed(1))
    how = {"goldfish_h": 4} if strategy == "hashed" else {}
    found = left_out(rows, settings(goldfish_k=k, goldfish_strategy=strategy, **how), 3).expand(rows.shape)
    assert found[:, 3:].float().mean().item() == pytest.approx(1 / k, rel=0.06)


def test_static_leaves_out_every_kth():
    found = left_out(ROWS, settings(goldfish_k=3, goldfish_strategy="static"), 0)
    assert found.expand(ROWS.shape)[5].nonzero().flatten().tolist() == list(range(2, 60, 3))


def test_seeded_depends_on_the_whole_sequence_and_the_seed():
    seeded = settings(goldfish_strategy="seeded")
    one, other = left_out(ROWS, seeded, 0), left_out(ROWS, seeded, 1)
    assert len(one.unique(dim=0)) == len(ROWS) and (one != other).float().mean() > 0.2
    assert torch.equal(left_out(ROWS.flip(0), seeded, 0), one.flip(0))


def test_digit_0_hashes_like_any_other():
    """Its id is 0: a plain product would give every window with a 0 the same hash."""
    rows = torch.randint(0, 2, (1, 4000), generator=torch.Generator().manual_seed(1))
    hashes, windows = window_hashes(rows, 10)[0, 9:], rows[0].unfold(0, 10, 1)
    assert len(hashes.unique()) == len(windows.unique(dim=0)) > 900
    assert len(window_hashes(torch.tensor([[0, 0, 0, 0]]), 4).unique()) == 4  # of 1, 2, 3 and 4 zeros
    swapped = window_hashes(torch.tensor([[3, 5], [5, 3]]), 2)[:, 1]
    assert swapped[0] != swapped[1]
    assert powers(3)[:2] == [1, _BASE] and powers(3)[2] % 2**64 == _BASE**2 % 2**64


def test_left_out_tokens_have_no_gradient_and_the_mean_is_over_the_others(make_model, tiny_dataset):
    ids = torch.arange(16)
    tokens = tiny_dataset.sequences[ids]
    regularizer = build(make_model(), settings(goldfish_h=3), seed=0)
    kept = regularizer.positions(tokens, loss_mask(tokens, tiny_dataset.ignored_token))
    assert not (kept & ~loss_mask(tokens, tiny_dataset.ignored_token)).any()

    model = make_model()
    losses = torch.nn.functional.cross_entropy(
        model(tokens.long()).logits[:, :-1].mT, tokens[:, 1:].long(), reduction="none"
    )
    expected = torch.autograd.grad(losses[kept].mean(), list(model.parameters()))
    for microbatch in (5, 16):
        model, training = make_model(), TrainingSettings(train_microbatch=microbatch)
        regularizer = build(model, settings(goldfish_h=3), seed=0)
        loss = training_step(
            model, new_optimizer(model, training), tokens, ids, training, [regularizer], tiny_dataset.ignored_token
        )
        assert loss == pytest.approx(losses[kept].mean().item(), rel=1e-5)
        for parameter, gradient in zip(model.parameters(), expected):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [
    dict(goldfish_k=1), dict(goldfish_h=0), dict(goldfish_strategy="random"),
    dict(goldfish_h=4, goldfish_strategy="seeded"), dict(goldfish_h=4, goldfish_strategy="static"),
])  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError, match=f"--{next(iter(bad))}"):
        settings(**bad)


def test_what_no_sequence_has_room_for_is_refused(make_model):
    context = make_model().config.n_positions
    with pytest.raises(UserError, match=f"--goldfish_h {context}: must be < {context}, the model's context"):
        build(make_model(), settings(goldfish_h=context), seed=0)
    with pytest.raises(UserError, match=f"--goldfish_k {context}: must be < {context}, the model's context"):
        build(make_model(), settings(goldfish_k=context, goldfish_strategy="static"), seed=0)
    last = build(make_model(), settings(goldfish_k=context - 1, goldfish_strategy="static"), seed=0)
    assert (~last.positions(ROWS[:1, :context], torch.ones(1, context - 1, dtype=torch.bool))).sum() == 1
    tokens = torch.randint(0, 10, (400, context), generator=torch.Generator().manual_seed(0))
    widest = build(make_model(), settings(goldfish_h=context - 1), seed=0)
    mask = torch.ones(400, context - 1, dtype=torch.bool)
    assert 50 < (~widest.positions(tokens, mask)).sum() < 150  # one target a row could be left out, a quarter are
