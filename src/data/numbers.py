"""Number sequences: recurrences x -> f(x), written out digit by digit (the study, section 3.1)."""

from __future__ import annotations

import numpy as np

from tinymem.errors import UserError

BOS, EOS, SPACE, PAD = 10, 11, 12, 13
VOCABULARY_SIZE = 14
MODULUS = 20134
CHARACTERS = "0123456789^$ _"

# task -> (recurrence, main constant). The extra tasks use the remaining constants of CONSTANTS.
TASKS = {
    **{name: (name, 7) for name in ("increment", "mult", "exp", "exponential")},
    **{f"{name}_{c}": (name, c) for c in (3, 5) for name in ("increment", "mult", "exp", "exponential")},
}
CONSTANTS = {"seven": 7, "two": 2, "three": 3, "four": 4, "five": 5}


def task_constants(task: str) -> dict[str, int]:
    """Return the constants of a task, main constant first: set name ("seven", "two" ...) -> constant."""
    main = TASKS[task][1]
    return dict(sorted(CONSTANTS.items(), key=lambda item: item[1] != main))


def sequence_values(task: str, constant: int, count: int, length: int = 20) -> np.ndarray:
    """Return the first `count` sequences of a task, int64 (count, length).

    Sequence i starts from x = i, which is not written itself.
    """
    recurrence = TASKS[task][0]
    x = np.arange(count, dtype=np.int64)
    if recurrence == "increment":
        return x[:, None] + constant * np.arange(1, length + 1, dtype=np.int64)
    if recurrence == "exp":
        powers = np.array([pow(constant, exponent, MODULUS) for exponent in range(max(MODULUS, count))])
    values = np.empty((count, length), dtype=np.int64)
    for step in range(length):
        if recurrence == "mult":
            x = constant * x % MODULUS
        elif recurrence == "exp":
            x = powers[x]
        else:
            x = _power(x % MODULUS, constant)
        values[:, step] = x
    return values


def distinct_sequences(task: str, constant: int, count: int, length: int = 20) -> np.ndarray:
    """Return the distinct sequences among the first `count`, in the order of their starts.

    Modulo MODULUS, exp and exponential map many starts to the same value (of 20000 starts, exp with 7 leaves 10066 and
    exponential with 7 leaves 2878), as does mult with an even constant. The first value determines the whole row.
    """
    values = sequence_values(task, constant, count, length)
    return values[np.sort(np.unique(values[:, 0], return_index=True)[1])]


def number_of_starts(task: str) -> int | None:
    """Return the number of starts before the sequences of a task repeat; None if they never do."""
    return None if TASKS[task][0] == "increment" else MODULUS


def _power(base: np.ndarray, exponent: int) -> np.ndarray:
    """Return base ** exponent mod MODULUS, reduced after each product so that nothing overflows."""
    power = np.ones_like(base)
    for _ in range(exponent):
        power = power * base % MODULUS
    return power


def encode(values: np.ndarray, context: int) -> np.ndarray:
    """Write `^v1 v2 ... vn$`, one token per character, padded on the right with PAD.

    values: non-negative int64 (count, length). Return uint8 (count, context).
    Raise UserError, with the required length, when a sequence does not fit.
    """
    top = int(values.max(initial=0))
    if top < values.size + 100_000:
        distinct, which = np.arange(top + 1), values
    else:  # too many values for a table of all
        distinct, which = np.unique(values, return_inverse=True)
        which = which.reshape(values.shape)
    written, widths = _written(distinct)
    widths = widths[which]
    ends = widths.sum(1)  # position of the last separator of each row; BOS is at 0
    needed = int(ends.max(initial=0)) + 1
    if needed > context:
        raise UserError(f"--max_ctx {context}: too short for these sequences, which need {needed}")
    text = written[which][np.arange(written.shape[1]) < widths[..., None]]  # all rows, end to end
    text[np.cumsum(ends) - 1] = EOS
    tokens = np.full((len(values), context), PAD, dtype=np.uint8)
    tokens[:, 0] = BOS
    tokens[:, 1:][np.arange(1, context) <= ends[:, None]] = text
    return tokens


def _written(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of each value and a space, left-justified. values: non-negative int64 (V,), ascending.

    Return uint8 (V, most digits + 1), and the number of tokens of each value (V,).
    """
    powers = 10 ** np.arange(19, dtype=np.int64)
    digits = np.maximum(np.searchsorted(powers, values, side="right"), 1)  # 0 has one digit
    tokens = np.full((len(values), int(digits.max(initial=1)) + 1), SPACE, dtype=np.uint8)
    for width in np.unique(digits):
        rows = digits == width
        tokens[rows, :width] = values[rows, None] // powers[width - 1 :: -1] % 10
    return tokens, digits + 1


def decode(tokens) -> str:
    """Return the text of one sequence of token ids, with `_` for PAD."""
    return "".join(CHARACTERS[int(token)] for token in tokens)
