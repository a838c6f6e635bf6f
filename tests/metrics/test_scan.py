"""The scan for memorized sequences: same rows as testing each, also when it is stopped and started again."""

import pytest
import torch

from tinymem.data.dataset import Artifacts
from tinymem.metrics import scan
from tinymem.metrics.memorization import memorized
from tinymem.metrics.scan import distinct_tokens, find_memorized


@pytest.fixture
def rows(memorizing_noise):
    """Planted sequences among others, 10 + 10 tokens long where it counts."""
    dataset = memorizing_noise.dataset
    return torch.cat([dataset.sequences[:20], dataset.artifacts.planted, dataset.sequences[20:40]])


@pytest.fixture
def expected(memorizing_noise, rows):
    zeros = torch.zeros(len(rows), dtype=torch.long)
    flags = memorized(memorizing_noise.model, Artifacts(rows, rows, zeros + 10, zeros), 10)
    assert 0 < flags.sum() < len(rows)
    return flags.nonzero().flatten()


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_finds_the_memorized_rows(memorizing_noise, rows, expected, tmp_path, batch_size):
    progress = tmp_path / "p.json"
    assert torch.equal(find_memorized(memorizing_noise.model, rows, 10, 10, progress, "k", batch_size), expected)
    assert not progress.exists()


@pytest.mark.parametrize("key, rows_left", [("k", 20), ("another", 49)])
def test_stopped_it_goes_on_where_it_was(memorizing_noise, rows, expected, tmp_path, monkeypatch, key, rows_left):
    progress, tested = tmp_path / "p.json", []

    def stop(done, found):
        if done >= 29:
            raise KeyboardInterrupt

    def counting(model, artifacts, *more):
        tested.append(len(artifacts))
        return memorized(model, artifacts, *more)

    model = memorizing_noise.model
    with pytest.raises(KeyboardInterrupt):
        find_memorized(model, rows, 10, 10, progress, "k", 29, on_batch=stop)
    monkeypatch.setattr(scan, "memorized", counting)
    assert torch.equal(find_memorized(model, rows, 10, 10, progress, key, 5), expected)
    assert sum(tested) == rows_left and not progress.exists()


def test_what_was_done_is_saved_now_and_then(memorizing_noise, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "SAVE_SECONDS", 0.0)
    seen = []
    progress = tmp_path / "p.json"
    find_memorized(
        memorizing_noise.model, rows, 10, 10, progress, "k", 10, on_batch=lambda *_: seen.append(progress.exists())
    )
    assert all(seen) and len(seen) == 5


def test_constant_continuations_are_passed_over(memorizing_noise, rows, expected, tmp_path):
    counts = distinct_tokens(rows[:, 10:20])
    assert counts.tolist() == [len(set(row.tolist())) for row in rows[:, 10:20]]
    limit = int(counts[expected].max())
    found = find_memorized(memorizing_noise.model, rows, 10, 10, tmp_path / "p", "k", min_distinct=limit)
    assert torch.equal(found, expected[counts[expected] >= limit])
