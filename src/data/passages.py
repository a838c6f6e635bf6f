"""Real passages to plant in a language model, with text to retain and to test on: three sets of disjoint documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinymem.data.corpus import Corpus
from tinymem.data.number_dataset import SPLIT_SEED
from tinymem.data.tokenizer import tokenize
from tinymem.errors import UserError

ADDRESSES = ("sotu",)  # --plant builtin: presidential addresses


@dataclass(frozen=True)
class Passages:
    """Windows of T tokens, int32; no document gives rows to two of the three sets.

    planted   (N, T) passages to memorize, all with different prompts
    retain    (R, T) text to keep
    test      (S, T) text to measure on
    """

    planted: np.ndarray
    retain: np.ndarray
    test: np.ndarray


def draw_passages(
    corpus: Corpus, tokenizer, sizes: tuple[int, int, int], length: int, prompt: int, seed: int = 0
) -> Passages:
    """Draws N passages, at most R windows to retain and at most S to test on, (N, R, S) = sizes, each `length` tokens.

    Documents are dealt out in an order that is the same for every run, every third to the same set; the seed draws
    the windows within them. UserError when the corpus has too few documents or windows.
    """
    documents = corpus.documents()
    if len(documents) < 3:
        raise UserError(
            f"--plant: {corpus.name!r} has {len(documents)} documents; passages, retain and test text need 3"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(documents))
    rng = np.random.default_rng(seed)
    parts = []
    for first, size in enumerate(sizes):
        streams = tokenize(tokenizer, [documents[number] for number in order[first::3]])
        windows = distinct_prompts(rng.permutation(_windows(streams, length)), prompt)
        parts.append(windows[:size])
    if len(parts[0]) < sizes[0] or not all(map(len, parts)):
        raise UserError(
            f"--plant_sequences {sizes[0]}: a third of {corpus.name!r} holds only {len(parts[0])} passages of {length} "
            "tokens; ask for fewer or give more text"
        )
    return Passages(*parts)


def distinct_prompts(windows: np.ndarray, prompt: int) -> np.ndarray:
    """The first of all windows (rows, T) that begin with the same `prompt` tokens: one prompt has one continuation."""
    return windows[np.sort(np.unique(windows[:, :prompt], axis=0, return_index=True)[1])]


def _windows(streams: list[np.ndarray], length: int) -> np.ndarray:
    """Every document cut into windows of `length` tokens, what is left at its end dropped. int32 (rows, length)."""
    whole = [stream[: len(stream) // length * length].reshape(-1, length) for stream in streams]
    return np.concatenate(whole)
