"""The dataset object: training sequences, planted artifacts, test sets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

SPLIT_SEED = 598  # the study's seed; the train/test split does not depend on the run's seed


@dataclass(frozen=True)
class Artifacts:
    """Planted sequences, each with its clean twin. A = number of artifacts, T = context length.

    planted     (A, T) token ids in the training set (noised, backdoored, or a repeated passage)
    clean       (A, T) the clean twin, which is not in the training set
    prompt_end  (A,) the prompt is tokens [0, prompt_end) of the clean twin
    group       (A,) duplication group j: the artifact is repeated 10^j times in the training set
    """

    planted: torch.Tensor
    clean: torch.Tensor
    prompt_end: torch.Tensor
    group: torch.Tensor

    @classmethod
    def from_numpy(cls, planted, clean, prompt_end, group) -> Artifacts:
        """Make artifacts from NumPy arrays; positions and groups become int64, tokens keep their type."""
        return cls(*map(torch.from_numpy, (planted, clean, prompt_end.astype("int64"), group.astype("int64"))))

    def __len__(self) -> int:
        return len(self.planted)

    def select(self, rows: torch.Tensor) -> Artifacts:
        """Return the artifacts of these rows (indices or a boolean mask)."""
        return Artifacts(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


@dataclass(frozen=True)
class MemorizationDataset:
    """The data for training, measuring and unlearning. U = distinct training sequences, T = context length.

    sequences       (U, T) every distinct training sequence once, artifacts as planted (in a twin's: their
                    replacements); the row number is the example id
    order           (N,) example id of each training row; an artifact of group j occurs 10^j times. For a production
                    model, whose training rows are unknown: the sequences to retain
    artifact_ids    (A,) example id of each artifact
    artifacts       the planted sequences and their clean twins, in the order of artifact_ids
    test_artifacts  backdoored sequences that were held out of training (empty for noise)
    never_planted   sequences from the artifacts' generator that are in no training set: non-members (may be empty)
    tests           clean held-out sequences by name, each (rows, T); the main task first
    tasks           example ids of each task's training sequences by name ("seven", "two" ...; the main task first)
    kind            "noise", "backdoor" or "natural"
    prompt_tokens, continuation    n and k of (n, k) memorization; a backdoor's prompt ends after its trigger instead
    vocabulary_size, bos, eos, pad    token ids (bos or eos is None if the tokenizer has none)
    pad_counts      whether pad positions count in loss and accuracy (number sequences: yes, as in the study; text: no)
    """

    sequences: torch.Tensor
    order: torch.Tensor
    artifact_ids: torch.Tensor
    artifacts: Artifacts
    test_artifacts: Artifacts
    never_planted: Artifacts
    tests: dict[str, torch.Tensor]
    tasks: dict[str, torch.Tensor]
    kind: str
    prompt_tokens: int
    continuation: int
    vocabulary_size: int
    bos: int | None
    eos: int | None
    pad: int
    pad_counts: bool

    def __len__(self) -> int:
        return len(self.order)

    @property
    def ignored_token(self) -> int | None:
        """The token id that loss and accuracy ignore, if any."""
        return None if self.pad_counts else self.pad

    def measured(self, artifacts: Artifacts) -> torch.Tensor:
        """Return which artifacts count towards % memorized, bool (A,).

        Artifacts count if they differ from their clean twin inside the measured window: reproducing the others does not
        show memorization. Passages planted unchanged ("natural") count if the window holds any token. Tokens excluded
        from losses (pads of text) are not part of a window.
        """
        columns = torch.arange(artifacts.planted.shape[1])
        start = artifacts.prompt_end[:, None]
        window = (columns >= start) & (columns < start + self.continuation)
        if self.ignored_token is not None:
            window &= artifacts.planted != self.ignored_token
        return window.any(1) if self.kind == "natural" else ((artifacts.planted != artifacts.clean) & window).any(1)


def evenly_spaced(count: int, most: int) -> torch.Tensor:
    """Return at most `most` evenly spaced places in 0 .. count - 1, including the first and the last, int64."""
    return torch.linspace(0, max(count - 1, 0), min(count, most)).round().long()


def training_order(count: int, artifact_ids: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Return the example id of every training row: each of `count` examples once, an artifact of group j 10^j times."""
    repeats = torch.ones(count, dtype=torch.long)
    repeats[artifact_ids] = 10**group
    return torch.repeat_interleave(torch.arange(count), repeats)
