import numpy as np
import pytest
import torch
from known_rows import PAD, artifacts, free_run, known_in_part, successor, windows

from tinymem.metrics.near_verbatim import common_subsequence, copied, levenshtein, near_verbatim, rouge_l, similarities
from tinymem.metrics.probe import Probe


def plain_distance(one, other) -> int:
    table = [[i + j if not i * j else 0 for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a != b))
    return table[-1][-1]


def plain_subsequence(one, other) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def letters(*words: str) -> np.ndarray:
    return np.array([[ord(letter) for letter in word] for word in words])


def test_distances_by_hand():
    one, other = letters("abcdef", "flawxx", "abcdef"), letters("bcdefa", "lawnyy", "uvwxyz")
    lengths = np.array([6, 4, 6])
    assert levenshtein(one, other, lengths).tolist() == [2, 2, 6]  # one out, one in; flaw and lawn likewise
    assert common_subsequence(one, other, lengths).tolist() == [5, 3, 0]
    nothing = np.zeros(3, dtype=np.int64)
    assert levenshtein(one, other, nothing).tolist() == common_subsequence(one, other, nothing).tolist() == [0, 0, 0]


@pytest.mark.parametrize("width, letters", [(1, 2), (7, 2), (50, 3), (70, 14)])
def test_all_rows_at_once_against_one_entry_after_the_other(width, letters):
    generator = np.random.default_rng(width)
    one, other = generator.integers(0, letters, (2, 25, width))
    other[:8] = np.roll(one[:8], 1, axis=1)
    lengths = generator.integers(0, width + 1, 25)
    pairs = [(a[:n].tolist(), b[:n].tolist()) for a, b, n in zip(one, other, lengths)]
    assert levenshtein(one, other, lengths).tolist() == [plain_distance(*pair) for pair in pairs]
    assert common_subsequence(one, other, lengths).tolist() == [plain_subsequence(*pair) for pair in pairs]


def test_values_by_hand():
    # What is written counts up from the prompt: 1 2 3 4.
    rows = artifacts([[0, 1, 2, 3, 4], [0, 2, 3, 4, 5], [0, 1, 2, 9, 4], [0, 1, 9, PAD, PAD], [0] + [PAD] * 4], [1] * 5)
    probe = Probe(successor(), 4, pad=PAD)
    assert similarities(probe, rows)[:4].tolist() == [1, 0.5, 0.75, 0.5]
    assert rouge_l(probe, rows)[:4].tolist() == [1, 0.75, 0.75, 0.5]
    assert near_verbatim(probe, rows)[:4].tolist() == [1, 0, 1, 0] and copied(probe, rows)[:4].tolist() == [1, 0, 0, 0]
    assert all(f(probe, rows)[4].isnan() for f in (similarities, rouge_l, near_verbatim, copied))


def test_against_free_running_generation():
    probe, rows = known_in_part()
    found, common = similarities(probe, rows), rouge_l(probe, rows)
    for number, (prompt, _, tokens) in enumerate(windows(probe, rows)[:-1]):
        written = free_run(probe.model, prompt, len(tokens))
        assert found[number] == (len(tokens) - plain_distance(written, tokens)) / len(tokens)
        assert common[number] == plain_subsequence(written, tokens) / len(tokens)
    assert len(found.unique()) > 5 and (common[:-1] >= found[:-1]).all()
    # A free run is exact where, and only where, every teacher-forced arg-max is right.
    window = probe.teacher_forced(rows)
    assert torch.equal(found[:-1] == 1, (window.matches | ~window.real).all(1)[:-1])
