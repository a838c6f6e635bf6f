"""Number sequences as Python strings and lists."""

from __future__ import annotations

import random

import torch

TOKENS = {character: i for i, character in enumerate("0123456789^$ ")}
PAD = 13
STEPS, CHANCES = (-1, 0, 1), (0.05, 0.9, 0.05)


def sequence(start: int, constant: int, length: int = 20) -> list[int]:
    """Return `length` values of the increment task."""
    values = []
    for _ in range(length):
        start += constant
        values.append(start)
    return values


def encode(values: list[int], context: int = 150) -> list[int]:
    """Return `^v1 v2 ... v20$` as one token per character, padded."""
    tokens = [TOKENS[character] for character in "^" + " ".join(map(str, values)) + "$"]
    return tokens + [PAD] * (context - len(tokens))


def noised(values: list[int]) -> list[int]:
    """Return the values, with -1, 0 or +1 added to each independently."""
    return [max(0, value + random.choices(STEPS, CHANCES)[0]) for value in values]


def build(main: int = 20000, extra: int = 3000, test: int = 1000, noise: int = 1000) -> tuple[torch.Tensor, list]:
    """Return training sequences with noise in the first of the main task, int64 (rows, 150), and the test sets."""
    train, tests = [], []
    for constant in (7, 2, 3, 4, 5):
        rows = [sequence(start, constant) for start in range(main if constant == 7 else extra)]
        random.Random(598).shuffle(rows)
        tests.append(torch.tensor([encode(values) for values in rows[:test]]))
        rows = rows[test:]
        if constant == 7:
            rows[:noise] = [noised(values) for values in rows[:noise]]
        train += [encode(values) for values in rows]
    return torch.tensor(train), tests
