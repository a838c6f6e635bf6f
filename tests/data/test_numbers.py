import numpy as np
import pytest

from tinymem.data import numbers
from tinymem.errors import UserError


def test_the_first_sequences_of_each_recurrence_by_hand():
    assert numbers.sequence_values("increment", 7, 2, 3).tolist() == [[7, 14, 21], [8, 15, 22]]
    assert numbers.sequence_values("mult", 7, 3, 3)[2].tolist() == [14, 98, 686]
    assert numbers.sequence_values("exp", 3, 3, 3)[2].tolist() == [9, 19683, pow(3, 19683, 20134)]
    assert numbers.sequence_values("exponential", 3, 3, 4)[2].tolist() == [
        8,
        512,
        512**3 % 20134,
        (512**3 % 20134) ** 3 % 20134,
    ]


@pytest.mark.parametrize("task", ["increment", "mult", "exp", "exponential", "mult_3", "exponential_5"])
@pytest.mark.parametrize("constant", [2, 3, 4, 5, 7])
def test_recurrences_against_python_integers(task, constant):
    step = {
        "increment": lambda x: x + constant,
        "mult": lambda x: constant * x % 20134,
        "exp": lambda x: pow(constant, x, 20134),
        "exponential": lambda x: pow(x, constant, 20134),
    }[task.split("_")[0]]
    values = numbers.sequence_values(task, constant, 20150, 4)
    for start in (0, 1, 7, 19999, 20149):
        x, expected = start, []
        for _ in range(4):
            x = step(x)
            expected.append(x)
        assert values[start].tolist() == expected


@pytest.mark.parametrize(
    ("task", "constant", "count"),
    [("increment", 7, 20000), ("mult", 7, 20000), ("mult", 2, 10067), ("exp", 7, 10066), ("exponential", 7, 2878)],
)
def test_distinct_sequences_keep_the_first_of_each(task, constant, count):
    everything = numbers.sequence_values(task, constant, 20000).tolist()
    expected = list(dict.fromkeys(map(tuple, everything)))
    assert list(map(tuple, numbers.distinct_sequences(task, constant, 20000).tolist())) == expected
    assert len(expected) == count


def test_tokens_of_a_sequence_by_hand():
    tokens = numbers.encode(np.array([[7, 140, 0]]), 12)
    assert tokens.tolist() == [[10, 7, 12, 1, 4, 0, 12, 0, 11, 13, 13, 13]]
    assert numbers.decode(tokens[0]) == "^7 140 0$___"


@pytest.mark.parametrize(
    "top", [10, 10**5, 10**6, 10**12]
)  # written down for all values below the top, or for those met
def test_encode_against_python_strings(top):
    values = np.random.default_rng(0).integers(0, top, (200, 9))
    for row, tokens in zip(values, numbers.encode(values, 130)):
        assert numbers.decode(tokens) == ("^" + " ".join(map(str, row)) + "$").ljust(130, "_")


def test_a_context_that_is_too_short_names_the_length_needed():
    with pytest.raises(UserError, match=r"--max_ctx 8: .*need 9"):
        numbers.encode(np.array([[7, 140, 0]]), 8)
    assert numbers.encode(np.array([[7, 140, 0]]), 9).shape == (1, 9)


def test_the_main_constant_comes_first_and_none_is_trained_twice():
    assert list(numbers.task_constants("increment").values()) == [7, 2, 3, 4, 5]
    assert list(numbers.task_constants("mult_3").values()) == [3, 7, 2, 4, 5]
    assert list(numbers.task_constants("exp_5")) == ["five", "seven", "two", "three", "four"]
