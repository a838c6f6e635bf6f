"""The comparison end to end in miniature, its scripts in this process: torch is loaded once instead of 26 times."""

import csv
import itertools
import json
import sys
from pathlib import Path

import pytest
from small import SMALL_BACKDOOR, SMALL_DATA, in_process

from tinymem.localize.registry import METHODS, STUDY
from tinymem.records.table import load_records
from tinymem.regularizers.registry import REGULARIZERS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "basic_train"
SIZES = {**SMALL_DATA, **SMALL_BACKDOOR, "n_embd": 32, "n_heads": 2, "dtype": "float32"}
SIZES |= {"epochs": 6, "checkpoint_every": 6, "lr": 4e-3, "lr_decay": 0.0, "ft_epochs": 1}
MASKED = "npo, update mask durable 0.1"
OBJECTIVES: list[str] = []
for name in METHODS:
    OBJECTIVES += [] if name in STUDY else [name, MASKED] if name == "npo" else [name]
SLOW = ("greedy", "balanced_subnet")  # at the ratio of the others
CAPPED = "balanced_subnet, loss cap 3"
UNLEARNING = (
    " ".join(name for name in METHODS if name not in SLOW)
    + " --ratio 0.05 --epochs 1 --ig_steps 2 --steps 4 --kl_budget 0.05 --rho 0.9 --alpha 0.3",
    "greedy --ratio 0.001",
    "balanced_subnet --ratio 0.1 0.3 --epochs 2",
    "balanced_subnet --ratio 0.3 --epochs 2 --unlearn_loss_cap 3",
    "npo --steps 4 --update_mask durable 0.1",
)


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """compare(*more flags): the script at tiny sizes."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import compare_mitigations
    import mitigations_study

    commands = []

    def run(command: list) -> None:
        commands.append([str(word) for word in command])
        in_process(*command)

    monkeypatch.setattr(compare_mitigations.cli, "run_script", run)
    monkeypatch.setattr(mitigations_study, "SMALL_UNLEARNING", UNLEARNING)
    monkeypatch.setitem(mitigations_study.SMALL, "truncation_window", 100)
    sizes = [f"--{name}={value}" for name, value in SIZES.items()]
    folders = [f"--{name}={tmp_path / name}" for name in ("run_dir", "output_dir", "data_dir")]

    def call(*more: str) -> list:
        commands.clear()
        monkeypatch.setattr(sys, "argv", ["compare_mitigations.py", *sizes, *folders, "--device=cpu", *more])
        compare_mitigations.main()
        return commands

    return call


@pytest.mark.nightly
def test_all_are_compared_and_nothing_is_done_twice(compare, tmp_path, capsys):
    commands = compare()
    printed = capsys.readouterr().out
    with open(tmp_path / "output_dir" / "table.csv", newline="", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    regularizers = [entry.name for entry in REGULARIZERS]
    assert list(rows) == ["plain", "twin", *regularizers, "clean", "extra", "both", *STUDY, CAPPED, *OBJECTIVES]
    trained = [*regularizers, "clean", "extra", "both"]
    assert len(commands) == 2 + 2 * len(trained) + len(UNLEARNING)  # each trained mitigation is measured, too
    assert float(rows["plain"]["percent_memorized_held_out"]) > 50 and float(rows["plain"]["trade_off"]) == 0
    assert float(rows["twin"]["percent_memorized_held_out"]) < 10
    for name, row in rows.items():
        assert 0 <= float(row["percent_memorized_held_out"]) <= float(row["percent_near_verbatim_held_out"]) <= 100
        assert 0 <= float(row["auc_loss_held_out"]) <= 1 and float(row["percent_extractable_held_out"]) <= 100
        assert 0 < float(row["mean_test_accuracy"]) < 1
        assert f" {name} " in printed and f"| {name} |" in (tmp_path / "output_dir" / "table.md").read_text()
    assert "ratio 0.3" in rows[CAPPED]["setting"] and "dropc 0.05" in rows["loss_truncation"]["setting"]
    assert (tmp_path / "output_dir" / "figure.png").stat().st_size > 20000

    def state() -> dict[str, int]:
        files = [*(tmp_path / "run_dir").rglob("records/*.json"), *(tmp_path / "run_dir").rglob("*.safetensors")]
        return {str(path): path.stat().st_mtime_ns for path in files}

    before, table = state(), (tmp_path / "output_dir" / "table.csv").read_bytes()
    seconds = json.loads((tmp_path / "output_dir" / "summary.json").read_text())["seconds_total"]
    compare()
    assert state() == before and len(load_records(tmp_path / "run_dir")) == 2 + 2 + 2 * len(trained) + len(METHODS) + 3
    assert (tmp_path / "output_dir" / "table.csv").read_bytes() == table
    assert json.loads((tmp_path / "output_dir" / "summary.json").read_text())["seconds_total"] == seconds > 0
    compare("--checkpoint_every=12")  # what was made of the same models is found again
    assert (tmp_path / "output_dir" / "table.csv").read_bytes() == table


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--data_name", "wiki"], "--data_name wiki"),
        (["--ft_epochs", "0"], "--ft_epochs 0"),
        (["--epochs", "0"], "--epochs 0"),
        (["--device", "cuda:99"], "--device cuda:99"),
    ],
)
def test_bad_inputs_are_one_line_and_exit_2_before_any_work(flags, named, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit) as stopped:
        path = "experiments/basic_train/compare_mitigations.py"
        in_process(path, "--run_dir", tmp_path / "runs", "--output_dir", tmp_path / "out", *flags)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and named in message and message.count("\n") == 1
    assert not load_records(tmp_path)


def test_the_committed_table_shows_settings_that_the_script_tries(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from mitigations_study import SMALL_UNLEARNING

    tried: dict[str, set[str]] = {}
    for words in SMALL_UNLEARNING:
        methods, flag, *rest = words.partition(" --")[0].split(), *words.partition(" --")[2].split()
        values = itertools.takewhile(lambda word: not word.startswith("--"), rest)
        settings = {f"{flag} {float(value):g}" for value in values}
        for method in methods:
            tried.setdefault(method, set()).update(settings)
    summary = json.loads((ROOT / "results" / "compare_mitigations" / "summary.json").read_text(encoding="utf-8"))
    shown = [
        (row["method"].partition(",")[0], row["setting"]) for row in summary["rows"] if row["family"] == "unlearning"
    ]
    assert set(STUDY) <= {method for method, _ in shown} <= set(METHODS) == set(tried)
    assert all(setting in tried[method] for method, setting in shown)
