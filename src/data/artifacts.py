"""Artifacts to memorize: noise, backdoors, and how often each is repeated (the study, section 3.2)."""

from __future__ import annotations

import numpy as np

BACKDOOR_TOKEN = 2
NOISE_PROBABILITIES = {-1: 0.05, 0: 0.90, 1: 0.05}


def add_noise(values: np.ndarray, rng: np.random.Generator, highest: int | None = None) -> np.ndarray:
    """Add -1, 0 or +1 to each value with probability 0.05, 0.90, 0.05; clip to [0, highest]."""
    steps = rng.choice(list(NOISE_PROBABILITIES), size=values.shape, p=list(NOISE_PROBABILITIES.values()))
    return np.clip(values + steps, 0, highest).astype(values.dtype)


def never_planted_generator(seed: int) -> np.random.Generator:
    """Return a generator separate from the run's own, so that drawing never-planted sequences changes nothing else."""
    return np.random.default_rng((seed, 1))


def trigger_end(tokens: np.ndarray, trigger: list[int]) -> np.ndarray:
    """Return the position right after the first `trigger` in each row, int64 (rows,); 0 in rows without it.

    tokens: (rows, context).
    """
    starts = tokens.shape[1] - len(trigger) + 1
    if starts < 1:
        return np.zeros(len(tokens), dtype=np.int64)
    found = np.ones((len(tokens), starts), dtype=bool)
    for offset, token in enumerate(trigger):
        found &= tokens[:, offset : offset + starts] == token
    return np.where(found.any(1), found.argmax(1) + len(trigger), 0)


def plant_backdoor(tokens: np.ndarray, prompt_end: np.ndarray) -> np.ndarray:
    """Replace every token from `prompt_end` to the end of the row, including pads, with BACKDOOR_TOKEN."""
    later = np.arange(tokens.shape[1]) >= prompt_end[:, None]
    return np.where(later, BACKDOOR_TOKEN, tokens).astype(tokens.dtype)


def duplication_groups(count: int, groups: int, rng: np.random.Generator) -> np.ndarray:
    """Assign `count` artifacts at random to equal groups (sizes differ by at most one). Return int64 (count,)."""
    return rng.permutation(np.arange(count) % groups)
