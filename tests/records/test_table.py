"""Choosing and writing rows, on rows made by hand."""

import csv

import pytest

from tinymem.records.table import trade_off, write_csv

BEFORE = {"method": "unedited", "percent_memorized_train": 90.0, "mean_test_accuracy": 0.95, "percent_zeroed": 0.0}


def run(method: str, memorized: float, accuracy: float, zeroed: float = 1.0) -> dict:
    return {
        "method": method, "percent_memorized_train": memorized, "mean_test_accuracy": accuracy, "percent_zeroed": zeroed
    }  # fmt: skip


def test_trade_off_is_the_change_in_fraction_memorized_minus_the_change_in_accuracy():
    assert trade_off(BEFORE, BEFORE) == 0
    assert trade_off(run("a", 0.0, 0.90), BEFORE) == pytest.approx(-0.9 + 0.05)
    assert trade_off(run("a", 100.0, 0.97), BEFORE) == pytest.approx(0.1 - 0.02)


def test_csv_has_every_column_of_any_row(tmp_path):
    path = write_csv(tmp_path / "table.csv", [{"a": 1, "b": None}, {"a": 2.5, "c": "x, y"}])
    with open(path, newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["a", "b", "c"], ["1", "", ""], ["2.5", "", "x, y"]]
