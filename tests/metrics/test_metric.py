import math

import pytest
import torch

from tinymem.errors import UserError
from tinymem.metrics.metric import ALL_TESTS, EACH_TEST, PLANTED, Metric, Values, as_values, mean, percent, split_kind


def values(sums, weights, groups=None) -> Values:
    groups = None if groups is None else torch.tensor(groups)
    return Values(torch.tensor(sums).double(), torch.tensor(weights).double(), groups)


def test_means_by_hand():
    assert mean(values([3, 1], [4, 6])) == 0.4
    assert mean(values([3, 1, 1], [4, 4, 2], [7, 7, 2])) == (4 / 8 + 1 / 2) / 2
    assert mean(values([3, 0], [4, 0], [0, 1])) == 0.75  # a group without weight is no zero
    assert percent(as_values(torch.arange(20) < 11)) == 55.0  # to the last digit
    assert percent(as_values(torch.tensor([True, False, False]))) == pytest.approx(100 / 3, rel=1e-15)


@pytest.mark.parametrize("groups", [None, []])
def test_no_value_is_none(groups):
    assert mean(values([], [], groups)) is None and percent(values([], [], groups)) is None
    assert mean(as_values(torch.tensor([torch.nan, torch.nan]))) is None


def test_rows_without_a_value_do_not_count():
    found = as_values(torch.tensor([1.0, torch.nan, 0.0]))
    assert found.weights.tolist() == [1, 0, 1] and mean(found) == 0.5 and not math.isnan(found.sums.sum())


def test_infinite_values_stay_infinite():
    assert as_values(torch.tensor([1.0, -torch.inf, torch.inf])).sums.tolist() == [1, -math.inf, math.inf]


def test_what_has_no_weight_is_in_no_mean():
    found = as_values(Values(torch.tensor([1.0, torch.nan, 7.0]), torch.tensor([2.0, 0.0, 0.0])))
    assert mean(found) == 0.5


GOOD = dict(name="x", unit="%", better="lower", on=PLANTED, needs=("generation",), meaning="", values=lambda *_: None)


@pytest.mark.parametrize(
    "wrong",
    [{"name": "a b"}, {"better": "up"}, {"on": "train"}, {"needs": ("logits",)}, {"needs": "generation"},
     {"splits": ("dup_10",)}, {"known_when": "lower"}],
)  # fmt: skip
def test_a_metric_that_cannot_be_is_refused(wrong):
    with pytest.raises(UserError, match="metric"):
        Metric(**{**GOOD, **wrong})


def test_column_names():
    metric = Metric(**GOOD)
    assert metric.column("dup_10") == "x_dup_10" and metric.measured_on("dup_10") and not metric.measured_on("dup_x")
    assert Metric(**{**GOOD, "splits": ("train",)}).column("train") == "x"
    assert Metric(**{**GOOD, "on": EACH_TEST}).column("two") == "x_two"
    assert Metric(**{**GOOD, "on": ALL_TESTS}).column() == "x"
    assert [split_kind(name) for name in ("train", "dup_R", "dup_1000", "dup_", "as_published")] == [
        "train", "dup_R", "dup_R", None, None,
    ]  # fmt: skip
