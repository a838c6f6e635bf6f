"""The tables of as_published.py: means over models, beside the unedited ones; the committed ones."""

import sys

from small import ROOT, in_process

sys.path.append(str(ROOT / "experiments"))

import published_report as report
import pytest
import reproduction_report
from reproduction import Case
from reproduction_compare import Published, Unlearned

from tinymem.errors import UserError
from tinymem.records.identity import AS_PUBLISHED, UNEDITED
from tinymem.records.interval import mean_and_interval
from tinymem.records.record import record_digest


def record(seed, differences=(), kind=AS_PUBLISHED, **results):
    """A run's record, or that of the unedited model."""
    forget = {"unlearn_set_name": "mem", "holdout_fraction": 0.0, **({"forget": "test"} if differences else {})}
    about = {
        "kind": kind, "parent": None,
        "data": {"data_name": "increment", "artifact": "backdoor", "num_7": 9, "seed": seed},
        "model": {"n_layers": 2, "n_embd": 8}, "training": {"epoch": 3}, "forget": forget,
        "fingerprints": {"weights": str(seed)}, "results": results, "cost": {"seconds": 2.0},
    }  # fmt: skip
    method = {"name": "durable_as_published", "ratio": 0.05, "differences": list(differences)}
    return about if kind == UNEDITED else {**about, "method": method}


def test_means_and_intervals_over_seeds():
    lost = {0: 1.0, 1: 2.0, 2: 6.0}
    records = [record(seed, accuracy_lost=value, percent_memorized_test=50.0) for seed, value in lost.items()]
    records.append(record(1, ["test_triggers"], accuracy_lost=0.5, percent_memorized_test=50.0))
    none, every = report.rows_of(records[::-1])
    assert (none["models"], every["models"]) == (3, 1)
    assert (none["accuracy_lost"], none["accuracy_lost_ci95"]) == mean_and_interval([1.0, 2.0, 6.0])
    assert (every["accuracy_lost"], every["accuracy_lost_ci95"]) == (0.5, None)
    text = report.text_of([none, every])
    assert "| none | 50.0 |" in text and "| all | 50.0 | 0.50 | 2.0 | 1 |" in text and "± 6.57" in text
    assert [row["seeds"] for row in (none, every)] == ["0 1 2", "1"]
    assert report.label(("a", "b"), ["a", "b", "c"]) == "all but c" and report.label(("a",), ["a", "b"]) == "a"


def test_a_dtype_left_to_the_machine_is_the_one_that_it_chose():
    """So that means are not taken over runs of several precisions."""
    dtypes = [("auto", "float32"), ("auto", "bfloat16"), ("bfloat16", "float32")]
    records = [record(seed, accuracy_lost=float(seed)) for seed in range(3)]
    for one, (own, auto) in zip(records, dtypes):
        one["method"]["dtype"], one["environment"] = own, {"auto_dtype": auto}
    rows = report.rows_of(records)
    assert sorted((row["method.dtype"], row["seeds"]) for row in rows) == [("bfloat16", "1 2"), ("float32", "0")]
    assert "ratio 0.05, dtype bfloat16" in report.text_of(rows)


def test_the_unedited_model_stands_beside_any_run():
    """Also beside runs whose differences change the forget set, and no other model does."""
    run = record(0, ["test_triggers"], percent_memorized_test=5.0)
    before = record(0, kind=UNEDITED, percent_memorized_test=99.0)
    held_out = {**before, "forget": {**before["forget"], "holdout_fraction": 0.5}, "results": {}}
    rows = report.rows_of([held_out, run, before, record(1, kind=UNEDITED, percent_memorized_test=1.0)])
    assert [(row["method.name"], row["models"]) for row in rows] == [("unedited", 1), ("durable_as_published", 1)]
    assert "| (unedited) | 99.0 |" in report.text_of(rows)


def test_the_unedited_model_has_the_same_sequences_held_out():
    """Its line in the table of runs that hold some out is its own, with what it has memorized of these."""
    runs = []
    for fraction, share in [(0.0, None), (0.5, 97.0)]:
        for kind in (UNEDITED, AS_PUBLISHED):
            one = record(0, kind=kind, percent_memorized_test=90.0, percent_memorized_held_out=share)
            runs.append({**one, "forget": {**one["forget"], "holdout_fraction": fraction}})
    text = report.text_of(report.rows_of(runs))
    assert [line for line in text.splitlines() if "(unedited)" in line] == [
        "| (unedited) | 90.0 | - | 0 |", "| (unedited) | 90.0 | 97.0 | - | 0 |",
    ]  # fmt: skip


def test_numbers_out_of_bounds_are_powers_of_ten():
    runs = [record(seed, perplexity_rise_percent=value) for seed, value in enumerate((3.2e20, 1.0))]
    assert "| none | 2e+20 | 2.0 | 0 1 |" in report.text_of(report.rows_of(runs))


def test_runs_with_other_triggers_give_way():
    """Those of earlier versions, whose records do not say how much of the counted triggers is memorized."""
    old = [record(seed, ["test_triggers"], accuracy_lost=1.0) for seed in (0, 1)]
    new = record(0, ["test_triggers"], accuracy_lost=2.0, percent_memorized_counted=50.0)
    for records, lost, models in [(old, 1.0, 2), ([*old, new], 2.0, 1), ([new, *old], 2.0, 1)]:
        (row,) = report.rows_of(records)
        assert (row["accuracy_lost"], row["models"]) == (lost, models)


def test_reproduction_shows_them_beside_published_and_honest_runs(monkeypatch, tmp_path):
    """Only those at the published setting with all differences and counted triggers."""
    case = Case("backdoor", "increment", 2, (0, 1), (0, 3), unlearned=3)
    rows = [Unlearned(method, Published({}, 48.7, 1.06, None), []) for method in ("durable", "subnet", "zero_out")]

    def shown(*records):
        monkeypatch.setattr(reproduction_report, "load_records", lambda folder: list(records))
        return reproduction_report.as_published_here(case, rows, tmp_path)

    figures = {"percent_memorized_left_out": 3.0, "percent_memorized_train": 4.0}
    every = [
        record(seed, ["test_triggers"], accuracy_lost=seed, percent_memorized_counted=10.0, **figures)
        for seed in (0, 1)
    ]
    assert "| durable | 48.7 | 1.06 | 10.0 | 0.50 | 3.0 | 4.0 | - | 0 1 | - | - | - |" in shown(*every)[-1]
    none = record(1, accuracy_lost=2.0, percent_memorized_counted=20.0)
    relearned = [
        {**run, "parent": record_digest(run), "attack": {"steps": 5}, "results": {"percent_memorized_counted": share}}
        for run, share in zip(every, (60.0, 40.0))
    ]
    for attacks, mean in ((relearned, "50.0"), (relearned[:1], "-")):  # no mean of some of the seeds
        *_, line = shown(none, *every, *attacks)[-1].splitlines()
        assert line == f"| durable | 48.7 | 1.06 | 10.0 | 0.50 | 3.0 | 4.0 | {mean} | 0 1 | 20.0 | 2.00 | 1 |"
    other = {**every[0], "method": {**every[0]["method"], "ratio": 0.1}}
    deeper = {**every[0], "model": {"n_layers": 4, "n_embd": 8}}
    old = record(0, ["test_triggers"], accuracy_lost=1.0)
    assert [] == shown(none) == shown(other) == shown(deeper) == shown(old) == shown()


def test_a_folder_without_runs_is_named(tmp_path):
    """It would be left out of the means without a word."""
    with pytest.raises(UserError, match=f"^{tmp_path}: no runs with --differences or --study"):
        report.write_report([ROOT / "results" / "reproduction" / "as_published" / "seed0", tmp_path], tmp_path, str)


def test_the_committed_tables_are_those_of_the_committed_records(tmp_path):
    folder = ROOT / "results" / "reproduction" / "as_published"
    model = ROOT / "results" / "models" / "increment_backdoor_2layers_full"
    words = ["--report", "--model_path", model, "--output_dir", folder, "--results_dir", tmp_path]
    in_process("experiments/as_published.py", *words)
    for name in ("as_published.md", "as_published.csv"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()
