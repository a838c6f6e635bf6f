"""Near-verbatim memory: how close what the model writes freely comes to what was planted."""

from __future__ import annotations

import numpy as np
import torch

from tinymem.data.dataset import Artifacts
from tinymem.metrics.metric import COMPARED, PLANTED, Metric, percent
from tinymem.metrics.probe import Probe

NEAR, COPIED = 0.75, 0.95  # Levenshtein similarity of near-verbatim text and of a copy (2510.24256)


def similarities(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return 1 - Levenshtein distance / length in tokens, of greedy continuations, float64 (A,); NaN for no tokens."""
    written, planted, lengths = _texts(probe, artifacts)
    return _share(lengths - levenshtein(written, planted, lengths), lengths)


def near_verbatim(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return whether the similarity is 0.75 or more."""
    return _reaches(similarities(probe, artifacts), NEAR)


def copied(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return whether the similarity is 0.95 or more."""
    return _reaches(similarities(probe, artifacts), COPIED)


def rouge_l(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return the longest common subsequence / length, float64 (A,).

    Both sides are equally long, so recall, precision and F1 of ROUGE-L coincide.
    """
    written, planted, lengths = _texts(probe, artifacts)
    return _share(common_subsequence(written, planted, lengths), lengths)


def levenshtein(one: np.ndarray, other: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the edit distance of the first `lengths` tokens of each row, int64 (rows,). one, other: (rows, k)."""
    columns = np.arange(one.shape[1] + 1)

    def step(above: np.ndarray, differs: np.ndarray, number: int) -> np.ndarray:
        row = np.empty_like(above)
        row[:, 0] = number
        row[:, 1:] = np.minimum(above[:, 1:] + 1, above[:, :-1] + differs)
        # An insertion adds 1 per column: the minimum over columns to the left, each plus its distance.
        return np.minimum.accumulate(row - columns, 1) + columns

    return _table(one, other, lengths, np.broadcast_to(columns, (len(one), len(columns))), step)


def common_subsequence(one: np.ndarray, other: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the length of the longest common subsequence of the first `lengths` tokens, int64 (rows,)."""

    def step(above: np.ndarray, differs: np.ndarray, number: int) -> np.ndarray:
        row = above.copy()
        row[:, 1:] = np.maximum(row[:, 1:], above[:, :-1] + ~differs)
        return np.maximum.accumulate(row, 1)

    return _table(one, other, lengths, np.zeros((len(one), one.shape[1] + 1), dtype=np.int64), step)


def _table(one: np.ndarray, other: np.ndarray, lengths: np.ndarray, row: np.ndarray, step) -> np.ndarray:
    """Fill the dynamic programming table of all rows at once, line by line; return its entry at (length, length)."""
    entries = row[np.arange(len(lengths)), 0].copy()
    for number in range(1, one.shape[1] + 1):
        row = step(row, one[:, number - 1, None] != other, number)
        ends = np.flatnonzero(lengths == number)
        entries[ends] = row[ends, number]
    return entries


def _texts(probe: Probe, artifacts: Artifacts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is written and what was planted, without pads: each (A, k), tokens first; and their number."""
    targets, real = probe.real_targets(artifacts)
    order = (~real).int().argsort(dim=1, stable=True)
    written = probe.generated(artifacts).gather(1, order).numpy()
    return written, targets.gather(1, order).numpy(), real.sum(1).numpy()


def _share(count: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    found = torch.from_numpy(count / np.maximum(lengths, 1))
    return found.masked_fill(torch.from_numpy(lengths == 0), torch.nan)


def _reaches(found: torch.Tensor, least: float) -> torch.Tensor:
    return (found >= least).double().masked_fill(found.isnan(), torch.nan)


WRITTEN = ("generation",)
PERCENT_NEAR_VERBATIM = Metric(
    "percent_near_verbatim", "%", "twin", PLANTED, WRITTEN,
    "sequences whose continuation comes out with a Levenshtein similarity of 0.75 or more",
    near_verbatim, percent, COMPARED, short="near_verbatim",
)  # fmt: skip
PERCENT_COPIED = Metric(
    "percent_copied", "%", "twin", PLANTED, WRITTEN,
    "sequences whose continuation comes out with a Levenshtein similarity of 0.95 or more",
    copied, percent, COMPARED, short="copied",
)  # fmt: skip
LEVENSHTEIN_SIMILARITY = Metric(
    "levenshtein_similarity", "0 to 1", "twin", PLANTED, WRITTEN,
    "1 - Levenshtein distance in tokens / length, of the continuation that comes out",
    similarities, splits=COMPARED,
)  # fmt: skip
ROUGE_L = Metric(
    "rouge_l", "0 to 1", "twin", PLANTED, WRITTEN,
    "longest common subsequence / length, of the continuation that comes out",
    rouge_l, splits=COMPARED,
)  # fmt: skip
