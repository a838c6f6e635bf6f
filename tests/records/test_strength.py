"""The setting by which the runs of a method differ."""

import pytest

from tinymem.records.strength import strength_in, with_strength


@pytest.mark.parametrize(
    "settings, found",
    [
        ({"lr": 0.1, "steps": 50}, ("steps", 50)),
        ({"ratio": None}, None),
        ({"lr": 0.1}, None),
        ({"code": "0" * 16, "share": 1, "dtype": "float32", "deep": True}, ("share", 1)),  # a user's only number
        ({"code": "0" * 16, "share": 1, "lr": 0.1}, None),
        ({"code": "0" * 16, "share": 1, "ratio": 0.1}, ("ratio", 0.1)),
    ],
)
def test_the_strength_of_a_method(settings, found):
    assert strength_in(settings) == found
    assert with_strength("mine", settings) == (f"mine {found[1]}" if found else "mine")
