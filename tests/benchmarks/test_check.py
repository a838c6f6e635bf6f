"""The regression guard, the report and the timers, on results made by hand."""

import json
import sys

import check
import pytest
import report
import run
import timing
import torch
from case import QUICK, Case

from tinymem.errors import UserError


def results(device="cpu", batch=128, auto_dtype="float32", **ratios):
    rows = [
        {"name": name, "ratio": ratio, "dtype": "bfloat16" if "bfloat16" in name else "float32"}
        for name, ratio in ratios.items()
    ]
    return {
        "settings": {"quick": False, "batch": batch},
        "environment": {"device": device, "auto_dtype": auto_dtype},
        "rows": rows,
    }


def fell(fresh, committed):
    return [row["name"] for row in check.fallen(fresh, committed) if row["fell"]]


@pytest.mark.parametrize("ratio, expected", [(3.0, []), (2.26, []), (2.24, ["training"]), (9.0, [])])
def test_a_ratio_may_fall_by_a_quarter(ratio, expected):
    assert fell(results(training=ratio, greedy=2.0), results(training=3.0, greedy=2.0)) == expected


def test_rows_without_a_ratio_are_passed_over():
    committed = results(training=3.0)
    committed["rows"].append({"name": "help", "ours_seconds": 0.1})
    assert [row["name"] for row in check.fallen(results(training=3.0, new=1.0), committed)] == ["training"]


def test_bfloat16_is_compared_only_where_the_fresh_results_have_it():
    committed = results(training=3.0, training_bfloat16=4.0)
    *_, skipped = check.fallen(results(training=3.0), committed)
    assert (skipped["name"], skipped["fresh"], skipped["fell"]) == ("training_bfloat16", None, False)
    narrow = results(training=3.0, training_bfloat16=1.0, auto_dtype="bfloat16")
    assert fell(narrow, committed) == ["training_bfloat16"]
    with pytest.raises(UserError, match="no row training_bfloat16"):
        check.fallen(results(training=3.0, auto_dtype="bfloat16"), committed)


def test_the_same_row_in_another_precision_is_not_compared():
    fresh = results(subnet=1.0)
    fresh["rows"][0]["dtype"] = "bfloat16"
    assert [(row["fresh"], row["fell"]) for row in check.fallen(fresh, results(subnet=3.0))] == [(None, False)]
    del fresh["rows"][0]["dtype"]
    with pytest.raises(UserError, match="older run.py"):
        check.fallen(fresh, results(subnet=3.0))


@pytest.mark.parametrize(
    "fresh, reason",
    [
        (results(batch=32, training=3.0), "batch is 32"),
        (results(device="cuda:0", training=3.0), "measured on cuda"),
        (results(greedy=3.0), "no row training"),
    ],
)
def test_what_cannot_be_compared_is_refused(fresh, reason):
    with pytest.raises(UserError, match=reason):
        check.fallen(fresh, results(training=3.0))


@pytest.mark.parametrize("ratio, status", [(3.0, None), (1.0, 1)])
def test_the_script_fails_where_a_ratio_fell(tmp_path, monkeypatch, capsys, ratio, status):
    for name, content in (("fresh", results(training=ratio)), ("committed", results(training=3.0))):
        (tmp_path / name).write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["check.py", str(tmp_path / "fresh"), "--committed", str(tmp_path / "committed")])
    try:
        ended = check.main()
    except SystemExit as error:
        ended = error.code
    assert ended == status
    assert ("training" in capsys.readouterr().err) == bool(status)


def full_row(**changes):
    row = dict(
        name="training_2_layers_float32", work="a step", recipe_seconds=3.0, recipe_same_allocator_seconds=2.0,
        stock_seconds=None, ours_seconds=1.0, ratio=3.0, ratio_same_allocator=2.0, share_of_limit=0.5, goal=1.5,
        goal_same_allocator=2.5, goal_share=0.65, shares_measured={"recipe": 0.25},
        tokens_per_second={"recipe": 50, "recipe as it comes": 33, "stock": 60, "ours": 1000},
    )  # fmt: skip
    return row | changes


def test_the_report_shows_what_is_missed():
    batches = [
        full_row(name=f"training_batch_{n}", tokens_per_second={"recipe": 50, "stock": 40, "ours": speed})
        for n, speed in ((32, 120), (64, 100))
    ]
    search = full_row(name="finding", tokens_per_second={"recipe": 7, "stock": 1234, "ours": 56789})
    environment = {"torch": "2", "transformers": "5", "threads": 2, "device": "cpu"}
    help_row = {"name": "help", "work": "--help", "ours_seconds": 0.5, "goal_seconds": 0.4}
    outside = {"data": 1.0, "plots": 4.5}
    text = report.render(
        {
            "rows": [full_row(), *batches, search, help_row],
            "environment": environment,
            "outside_the_steps_percent": outside,
            "profile_percent": {"float32": {"matrix products": 70.0}},
        }
    )
    assert "| 3.0x | 2.0x (goal: 2.5x) | 50% (goal: 65%) |" in text
    assert "recipe 25.000%" in text
    assert "ours 1.20 (goal: 1.10)" in text
    assert "| --help | 0.500 (goal: 0.400) |" in text
    assert "| together | 5.50 (goal: 5.00) |" in text
    assert "| 33 | 50 |" in text
    assert "| find_memorized.py --stride 1 | 56,789 |" in text and "| `finding` |" not in text


def test_results_are_checked_against_those_of_such_a_machine(tmp_path, monkeypatch, capsys):
    for name, dtype, ratio in (("results", "bfloat16", 9.0), ("results_float32", "float32", 3.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(results(auto_dtype=dtype, training=ratio)))
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(report, "FLOAT32", tmp_path / "results_float32.json")
    for dtype, falls in (("float32", False), ("bfloat16", True)):
        (tmp_path / "fresh.json").write_text(json.dumps(results(auto_dtype=dtype, training=2.9)))
        monkeypatch.setattr(sys, "argv", ["check.py", str(tmp_path / "fresh.json")])
        if falls:
            pytest.raises(SystemExit, check.main)
        else:
            check.main()
        assert ("fell by more" in capsys.readouterr().err) == falls


@pytest.mark.skipif(not report.RESULTS.exists(), reason="not measured yet")
def test_the_committed_report_is_that_of_the_committed_results():
    rendered = report.render(json.loads(report.RESULTS.read_text()))
    assert report.RESULTS.with_name("README.md").read_text() == rendered


def test_timers_take_turns_and_warm_up_does_not_count():
    calls = []

    def timer(name, values):
        values = iter(values)
        return lambda: (calls.append(name), next(values))[1]

    done = timing.rounds({"a": timer("a", [9, 1, 2, 3]), "b": timer("b", [9, 5, 5, 8])}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert timing.medians(done) == {"a": 2, "b": 5}


def test_a_spent_budget_ends_the_rounds_after_the_first_that_counts():
    assert len(timing.rounds({"a": lambda: 1.0}, repeats=5, budget=0.0)) == 1


def test_a_row_by_hand(monkeypatch):
    monkeypatch.setattr(timing, "seconds", lambda work, device: work())
    monkeypatch.setattr(timing, "matrix_product", lambda device, dtype: (lambda: 2.0, 8.0))  # 4 operations a second
    variants = {"recipe": lambda: 3.0, "stock": lambda: 1.0, "ours": lambda: 2.0}
    case = Case("work", variants, shares={"recipe": 0.5}, elsewhere=(), flops=4.0, tokens=10)
    row = run.measure_case("name", case, None, QUICK, torch.device("cpu"), 1.0)
    names = ("recipe_seconds", "ours_seconds", "ratio", "share_of_limit")
    assert [row[name] for name in names] == [6.0, 2.0, 3.0, 0.5]
    assert row["tokens_per_second"] == {"recipe": 2, "stock": 10, "ours": 5}


def test_a_readme_beside_the_output_stays(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("mine")
    monkeypatch.setattr(run, "measure", lambda *_: results(training=3.0))
    monkeypatch.setattr(run.report, "terminal_table", str)
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(tmp_path / "fresh.json"), "--device", "cpu"])
    run.main()
    assert (tmp_path / "README.md").read_text() == "mine" and json.loads((tmp_path / "fresh.json").read_text())
