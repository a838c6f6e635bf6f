import numpy as np
import pytest
import torch

from tinymem.regularizers.dropper import Settings, build
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.train import training_step


def reference(batches: list[np.ndarray], window: int, dropc: float):
    """Sequence by sequence: which are kept in each batch, and the cutoff after it."""
    seen, cutoff = [], np.inf
    for batch in batches:
        kept = batch <= cutoff
        for loss in batch:
            seen.append(loss)
            if len(seen) % window == 0:
                cutoff = np.quantile(seen[-window:], 1 - dropc)
        yield kept, cutoff


def run(model, settings: Settings, batches: list[np.ndarray], microbatch: int):
    """The same through the regularizer, every sequence having two positions and a third that does not count."""
    regularizer = build(model, settings, seed=0)
    for batch in batches:
        losses, kept = torch.from_numpy(batch)[:, None] * torch.tensor([0.5, 1.5, 9.0]), []
        loss_mask = torch.tensor([True, True, False]).expand(losses.shape)
        for some, mask in zip(losses.split(microbatch), loss_mask.split(microbatch)):
            kept.append(regularizer.token_losses(some, mask)[:, 0] != 0)
        regularizer.after_backward()
        yield torch.cat(kept).numpy(), regularizer.state["cutoff"].item()


@pytest.mark.parametrize("window, dropc", [(20, 0.1), (16, 0.4), (5, 0.25), (1000, 0.1), (20, 0.0)])
@pytest.mark.parametrize("microbatch", [3, 8])
def test_quantile_and_window_against_numpy(make_model, window, dropc, microbatch):
    rng = np.random.default_rng(0)
    batches = [rng.gamma(2.0, size=8).astype(np.float32) + 0.1 * i for i in range(25)]
    settings = Settings(truncate_loss=True, dropc=dropc, truncation_window=window)
    results = run(make_model(), settings, batches, microbatch)
    for (kept, cutoff), (expected_kept, expected_cutoff) in zip(results, reference(batches, window, dropc)):
        assert cutoff == pytest.approx(expected_cutoff, rel=1e-6)
        assert (kept == expected_kept).all()


def test_nothing_is_truncated_before_the_window_is_full(make_model):
    batches = [np.arange(1, 9, dtype=np.float32)] * 3
    settings = Settings(truncate_loss=True, dropc=0.5, truncation_window=16)
    kept = [kept.tolist() for kept, _ in run(make_model(), settings, batches, 8)]
    assert kept == [[True] * 8, [True] * 8, [True] * 4 + [False] * 4]


def test_truncated_sequences_have_no_gradient_and_the_mean_is_over_the_batch(make_model, tiny_dataset):
    settings = Settings(truncate_loss=True, dropc=0.5, truncation_window=8)
    ids = torch.arange(16)
    gradients = []
    for truncated in (True, False):
        model = make_model()
        regularizer = build(model, settings, seed=0)
        losses = batch_losses(model, tiny_dataset.sequences[ids])
        cutoff = losses.sort().values[7:9].mean()  # between two losses: rounding must not decide
        regularizer.state["cutoff"].copy_(cutoff)
        kept, share = (ids, 1.0) if truncated else (ids[losses <= cutoff], (losses <= cutoff).float().mean())
        step(model, tiny_dataset, kept, [regularizer] if truncated else [], microbatch=8)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]) * share)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_microbatches_change_nothing_but_rounding(make_model, tiny_dataset):
    states = []
    for microbatch in (4, 16):
        model = make_model()
        regularizer = build(model, Settings(truncate_loss=True, dropc=0.3, truncation_window=24), seed=0)
        for first in (0, 16, 32):
            step(model, tiny_dataset, torch.arange(first, first + 16), [regularizer], microbatch)
        states.append(regularizer.state)
    for name in ("window", "cutoff", "seen"):
        torch.testing.assert_close(states[0][name], states[1][name])


def batch_losses(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        logits = model(tokens.long()).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:].long(), reduction="none").mean(1)


def step(model, dataset, ids, regularizers, microbatch: int) -> None:
    training = TrainingSettings(train_microbatch=microbatch)
    optimizer = new_optimizer(model, training)
    training_step(model, optimizer, dataset.sequences[ids], ids, training, regularizers, dataset.ignored_token)
