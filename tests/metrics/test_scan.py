"""The search for memorized windows: the same as testing each alone, also when it is stopped and started again."""

import pytest
import torch

from tinymem.data.dataset import Artifacts
from tinymem.data.windows import cut_windows
from tinymem.metrics import scan
from tinymem.metrics.memorization import memorized
from tinymem.metrics.scan import distinct_tokens, find_memorized, screened


@pytest.fixture(scope="module")
def windows(memorizing_noise):
    """Every third offset of documents in which planted sequences stand at odd places, and of one that is too short."""
    dataset = memorizing_noise.dataset
    planted, other = dataset.artifacts.planted, dataset.sequences[0, :5]
    pairs = zip(planted, dataset.sequences)
    documents = [torch.cat([other[: number % 5], row[:25], more[:23]]) for number, (row, more) in enumerate(pairs)]
    documents.insert(3, other)
    return cut_windows([document.int().numpy() for document in documents], 22, 3)


def alone(model, rows, prompt=10, continuation=10):
    zeros = torch.zeros(len(rows), dtype=torch.long)
    return memorized(model, Artifacts(rows, rows, zeros + prompt, zeros), continuation)


@pytest.fixture(scope="module")
def expected(memorizing_noise, windows):
    flags = alone(memorizing_noise.model, windows.rows(torch.arange(len(windows))))
    assert 0 < flags.sum() < len(windows)
    return flags.nonzero().flatten()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(scan, "BLOCK", 1)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_finds_the_memorized_windows(memorizing_noise, windows, expected, tmp_path, batch_size):
    progress = tmp_path / "p.json"
    assert torch.equal(find_memorized(memorizing_noise.model, windows, 10, 10, progress, "k", batch_size), expected)
    assert not progress.exists()


@pytest.mark.parametrize("continuation", [1, 2, 3, 4])
def test_short_continuations(memorizing_noise, windows, tmp_path, continuation):
    flags = alone(memorizing_noise.model, windows.rows(torch.arange(len(windows))), 10, continuation)
    found = find_memorized(memorizing_noise.model, windows, 10, continuation, tmp_path / "p", "k")
    assert torch.equal(found, flags.nonzero().flatten())


@pytest.mark.parametrize("key, resumed", [("k", True), ("another", False)])
def test_stopped_it_resumes(memorizing_noise, windows, expected, tmp_path, monkeypatch, small_blocks, key, resumed):
    progress, tested = tmp_path / "p.json", []
    whole = scan.memorized_windows

    def stop(done, found):
        if done >= 29:
            raise KeyboardInterrupt

    def counting(model, rows, *more):
        tested.append(len(rows))
        return whole(model, rows, *more)

    model = memorizing_noise.model
    with pytest.raises(KeyboardInterrupt):
        find_memorized(model, windows, 10, 10, progress, "k", 29, on_block=stop)
    monkeypatch.setattr(scan, "memorized_windows", counting)
    assert torch.equal(find_memorized(model, windows, 10, 10, progress, key, 5), expected)
    assert sum(tested) == len(windows) - 29 * resumed and not progress.exists()


def test_what_was_done_is_saved_now_and_then(memorizing_noise, windows, tmp_path, monkeypatch, small_blocks):
    monkeypatch.setattr(scan, "SAVE_SECONDS", 0.0)
    seen = []
    progress = tmp_path / "p.json"
    find_memorized(
        memorizing_noise.model, windows, 10, 10, progress, "k", 10, on_block=lambda *_: seen.append(progress.exists())
    )
    assert all(seen) and len(seen) == -(-len(windows) // 10)


def test_constant_continuations_are_passed_over(memorizing_noise, windows, expected, tmp_path):
    rows = windows.rows(torch.arange(len(windows)))
    counts = distinct_tokens(rows[:, 10:20])
    assert counts.tolist() == [len(set(row.tolist())) for row in rows[:, 10:20]]
    limit = int(counts[expected].max())
    found = find_memorized(memorizing_noise.model, windows, 10, 10, tmp_path / "p", "k", min_distinct=limit)
    assert torch.equal(found, expected[counts[expected] >= limit])


@pytest.mark.parametrize("piece, batch_size", [(1024, 64), (23, 2), (20, 1)])
@pytest.mark.parametrize("begin", [(), (10,)])
def test_the_screen_against_one_window_at_a_time(memorizing_noise, windows, monkeypatch, piece, batch_size, begin):
    """By hand: each token's arg-max given all tokens of its piece before it, and the share of each continuation."""
    monkeypatch.setattr(scan, "PIECE", piece)
    documents = [windows.stream[a:b].numpy() for a, b in zip(windows.bounds, windows.bounds[1:])]
    windows = cut_windows(documents, 22, 3, begin)
    model, numbers = memorizing_noise.model, torch.arange(4, 24)
    size = max(min(piece, 30 - len(begin)), 20)  # the model's context is 30
    expected = []
    for number in numbers.tolist():
        start = int(windows.starts[number])
        document = int(windows.documents(torch.tensor([number]))[0])
        inside = [other for other in numbers.tolist() if int(windows.documents(torch.tensor([other]))[0]) == document]
        low, hits = int(windows.starts[inside[0]]), 0
        for place in range(start + 10, start + 20):
            piece_start = low + (place - low - 10) // (size - 10) * (size - 10)
            before = torch.cat([torch.tensor(begin, dtype=torch.long), windows.stream[piece_start:place].long()])
            with torch.no_grad():
                hits += int(model(before[None]).logits[0, -1].argmax() == windows.stream[place])
        expected.append(hits)
    assert len(set(expected)) > 3
    for share in (0.1, 0.5, 1.0):
        found = screened(model, windows, numbers, 10, 10, share, batch_size)
        assert found.tolist() == [n for n, hits in zip(numbers.tolist(), expected) if hits >= share * 10]


def test_whatever_the_screen_lets_through_is_tested(memorizing_noise, windows, expected, tmp_path):
    model = memorizing_noise.model
    few = find_memorized(model, windows, 10, 10, tmp_path / "p", "k", 8, screen=0.9)
    assert set(few.tolist()) <= set(expected.tolist())
    passed = screened(model, windows, torch.arange(len(windows)), 10, 10, 0.01, 64)
    least = find_memorized(model, windows, 10, 10, tmp_path / "p", "k", 64, screen=0.01)
    assert least.tolist() == [number for number in expected.tolist() if number in set(passed.tolist())]
