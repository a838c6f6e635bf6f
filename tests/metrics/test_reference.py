"""Drift against a plain loop over whole distributions, and what happens where there is none."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import VOCABULARY, new_model, new_task

from tinymem.metrics import reference
from tinymem.metrics.evaluate import measure
from tinymem.metrics.reference import References, spread
from tinymem.models import losses
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied

PAD = 13
NAMES = ("kl", "flip_rate", "ndcg")


def dataset_of(tests: torch.Tensor):
    return SimpleNamespace(tests={"one": tests[:3], "two": tests[3:]}, vocabulary_size=VOCABULARY, pad=PAD)


def edit_of(model) -> Zeros:
    weight = find_mlps(model)[1].output
    mask = torch.rand(weight.view().shape, generator=torch.Generator().manual_seed(0)) < 0.6
    return Zeros({weight.name: mask})


def plain(model, edit, rows: torch.Tensor) -> dict[str, float]:
    """KL, flips in percent and nDCG@10 of every position that predicts no pad, one after the other."""
    with torch.no_grad():
        before = model(rows.long()).logits.double().softmax(-1)
        with applied(model, edit):
            after = model(rows.long()).logits.double().softmax(-1)
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for row in range(len(rows)):
        for place in range(rows.shape[1] - 1):
            if rows[row, place + 1] == PAD:
                continue
            p, q = before[row, place], after[row, place]
            found["kl"].append(sum(float(a * (a / b).log()) for a, b in zip(p, q)))
            found["flip_rate"].append(100.0 * (int(p.argmax()) != int(q.argmax())))
            ranks = {token: rank for rank, token in enumerate(p.argsort(descending=True)[:10].tolist())}
            gain = [(10 - ranks[t] if t in ranks else 0) for t in q.argsort(descending=True)[:10].tolist()]
            best = sum((10 - i) / math.log2(i + 2) for i in range(10))
            found["ndcg"].append(sum(g / math.log2(i + 2) for i, g in enumerate(gain)) / best)
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_drift_equals_a_plain_loop(architecture):
    model, task = new_model(architecture), new_task()
    retain, tests = task.retain[:12], task.retain[12:].clone()
    tests[1, 5:] = PAD
    references, edit = References(dataset_of(tests), retain), edit_of(model)
    references.prepare(model, 5)
    with applied(model, edit):
        references.prepare(model, 5)  # again: does nothing
        drift = {name: references.drift(model, name) for name in ("retain", "unseen")}
    for name, rows in (("retain", retain), ("unseen", tests)):
        expected, found = plain(model, edit, rows), drift[name]
        positions = found.positions.sum()
        sums = {"kl": found.kl, "flip_rate": 100 * found.flips, "ndcg": found.gains}
        for metric, values in sums.items():
            assert float(values.sum() / positions) == pytest.approx(expected[metric], rel=1e-4)
        assert expected["kl"] > 1e-3 and expected["flip_rate"] > 0


def test_no_edit_is_no_drift_and_few_positions_are_kept_of_a_large_vocabulary(monkeypatch):
    model, rows = new_model("gpt2"), new_task().retain
    monkeypatch.setattr(reference, "KEPT", 2 * len(rows) * VOCABULARY * 3)  # three positions of each row
    references = References(dataset_of(rows), rows)
    references.prepare(model, 64)
    drift = references.drift(model, "retain")
    real = (rows[:, 1:] != PAD).gather(1, spread(len(rows), rows.shape[1] - 1, 3)).sum(1)
    assert torch.equal(drift.positions, real.double()) and float(drift.kl.max()) == 0 == float(drift.flips.max())
    assert torch.allclose(drift.gains, drift.positions)


@pytest.mark.parametrize("positions, most", [(5, 5), (5, 9), (1, 1), (12, 4), (11, 3), (100, 1)])
def test_positions_of_all_rows_together_cover_the_text(positions, most):
    places = spread(256, positions, most)
    count = min(positions, most)
    assert places.shape == (256, count)
    part = (places * count).div(
        positions, rounding_mode="floor"
    )  # of each row one position in each part, up to rounding
    assert (part - torch.arange(count)).abs().max() <= 1 and (places.diff(dim=1) > 0).all()
    times = places.flatten().bincount(minlength=positions)
    assert times.min() >= 0.5 * times.float().mean() and times.max() <= 2 * times.float().mean()
    assert count < positions or torch.equal(places, torch.arange(positions).expand(256, -1))


@pytest.mark.parametrize("chunked", [True, False])
def test_drift_at_one_position_of_each_row_equals_that_of_a_plain_loop(chunked, monkeypatch):
    """As with a large vocabulary, whose output layer runs in chunks in some architectures."""
    model, rows = new_model("gpt2"), new_task().retain
    monkeypatch.setattr(losses, "LARGE_VOCABULARY", 1 if chunked else VOCABULARY + 1)
    assert losses.chunked(model) == chunked
    monkeypatch.setattr(reference, "KEPT", 2 * len(rows) * VOCABULARY)
    references, edit = References(dataset_of(rows), rows), edit_of(model)
    references.prepare(model, 5)
    with torch.no_grad():
        before = model(rows.long()).logits.log_softmax(-1)
        with applied(model, edit):
            now = model(rows.long()).logits.log_softmax(-1)
            drift = references.drift(model, "retain")
    places = spread(len(rows), rows.shape[1] - 1, 1)
    kl = (before.exp() * (before - now)).sum(-1)[:, :-1].gather(1, places)
    real = rows[:, 1:].gather(1, places) != PAD
    assert len(places.unique()) > 3
    torch.testing.assert_close(drift.kl.float(), (kl * real).sum(1), rtol=1e-3, atol=1e-6)


def test_rows_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(reference, "ROWS", 3)
    rows = torch.arange(9)[:, None].expand(9, 4)
    assert References(dataset_of(rows), rows).texts["retain"][:, 0].tolist() == [0, 4, 8]


def test_without_a_reference_there_is_no_value(memorizing_noise):
    row = measure(memorizing_noise.model, memorizing_noise.dataset, metrics=NAMES).row
    assert row == {f"{name}_{text}": None for name in NAMES for text in ("retain", "unseen")}
