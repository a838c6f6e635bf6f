"""The faithfulness of the metrics: its numbers by hand, and the experiment end to end in miniature."""

import itertools
import json
import math
import shutil
import sys

import pytest
import torch
from small import ROOT, SMALL_DATA, in_process

from tinymem.metrics import faithfulness as judging
from tinymem.metrics.registry import METRICS
from tinymem.records.table import load_records

SCRIPT = "experiments/faithfulness.py"
SIZES = {**SMALL_DATA, "n_embd": 32, "n_heads": 2, "epochs": 4, "checkpoint_every": 4}
REPORT = ("FAITHFULNESS.md", "faithfulness.csv", "faithfulness.png")


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """experiment(*more flags): the script at tiny sizes in this process; returns the training commands it ran."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import faithfulness

    commands = []

    def run(command: list) -> None:
        commands.append([str(word) for word in command])
        in_process(*command)

    monkeypatch.setattr(faithfulness.cli, "run_script", run)
    flags = [f"--{name}={value}" for name, value in SIZES.items()]
    flags += [f"--{name}={tmp_path / name}" for name in ("run_dir", "output_dir", "data_dir")]

    def call(*more: str) -> list:
        commands.clear()
        monkeypatch.setattr(sys, "argv", ["faithfulness.py", *flags, "--device=cpu", *more])
        faithfulness.main()
        return list(commands)

    return call


def test_the_auc_counts_all_pairs_with_ties_one_half():
    planted, twin = torch.tensor([3.0, 1.0, math.inf, math.nan]), torch.tensor([1.0, 2.0, math.inf])
    pairs = list(itertools.product([3.0, 1.0, math.inf], twin.tolist()))
    high = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert judging.auc(planted, twin, "high") == pytest.approx(high) == pytest.approx((2 + 0.5 + 2.5) / 9)
    assert judging.auc(planted, twin, "low") == pytest.approx(1 - high)
    assert judging.auc(torch.tensor([math.nan]), twin, "low") is None
    assert judging.auc(torch.ones(3), torch.ones(2), "high") == 0.5


def test_each_row_is_scored_by_the_metric_alone():
    rows = {"median_n_train": torch.tensor([math.log(0.5), -math.inf, math.log(0.1)], dtype=torch.float64)}
    assert judging.row_scores(METRICS["median_n"], rows).tolist() == [1, math.inf, 7]  # 1 - .9^7 = .52
    assert judging.model_score(METRICS["median_n"], {"median_n_train": None}, rows) == 7
    rows = {
        "percent_memorized_train": torch.tensor([1.0, 0.0]),
        "percent_memorized_train.weights": torch.tensor([1, 0]),
    }
    scores = judging.row_scores(METRICS["percent_memorized"], rows)
    assert scores[0] == 100 and scores[1].isnan()


def test_a_line_of_the_table_by_hand():
    metric, column = METRICS["planted_loss"], "planted_loss_train"
    planted = [({column: 0.2}, {column: torch.tensor([0.1, 0.3])}), ({column: 0.9}, {column: torch.tensor([0.8, 1.0])})]
    twins = [({column: 1.0}, {column: torch.tensor([0.9, 1.1])}), ({column: 0.8}, {column: torch.tensor([0.9, 0.7])})]
    row = judging.judge(metric, planted, twins)
    assert row["known_when"] == "low" and row["auc_models"] == 0.75
    assert row["auc_rows"] == pytest.approx((1 + 0.25) / 2) and row["auc_rows_lowest"] == 0.25
    assert row["mean_planted"] == pytest.approx(0.55) and row["mean_twins"] == pytest.approx(0.9)


def test_counterfactual_memorization_pairs_each_row_with_its_twin():
    one, other = ({"exact_match_share_train": torch.tensor(values)} for values in ([1.0, 0.5], [0.25, 0.5]))
    assert judging.counterfactual_rows([one, other], [other, other]).tolist() == [0.75, 0, 0, 0]


@pytest.mark.slow
def test_the_experiment_resumes_and_its_report_comes_from_records_alone(experiment, tmp_path, capsys):
    output = tmp_path / "output_dir"
    assert len(experiment("--seeds", "0", "1")) == 1 + 2 * 2
    printed = capsys.readouterr().out
    records = {record["method"]["name"]: record for record in load_records(output)}
    assert (
        len(load_records(output)) == 4 and records["twin"]["data"]["twin"] and "twin" not in records["planted"]["data"]
    )
    assert "planted_loss" in printed and "loss_over_twin" in printed
    table = (output / "faithfulness.csv").read_text().splitlines()
    assert len(table) == 1 + len(judging.judged())
    made = {name: (output / name).read_bytes() for name in REPORT}

    lost = next(
        path for path in (output / "records").glob("*.json") if json.loads(path.read_text())["data"].get("twin")
    )
    lost.unlink()
    assert len(experiment("--seeds", "0", "1")) == 2  # the reference and the lost one's training, both finished
    assert {name: (output / name).read_bytes() for name in REPORT} == made
    assert experiment("--seeds", "0", "1") == []

    shutil.rmtree(tmp_path / "run_dir")
    assert experiment("--report") == []
    assert {name: (output / name).read_bytes() for name in REPORT} == made

    with pytest.raises(Exception, match="holds records of other settings .data.num_noise is 9, not 12"):
        experiment("--seeds", "0", "1", "--num_noise=12")
    for path in (output / "records").glob("*.json"):
        if json.loads(path.read_text())["data"]["seed"] == 1:
            path.unlink()
    with pytest.raises(Exception, match="both models of 1 seeds"):
        experiment("--report")


def test_losses_numbers_of_samples_and_recovery_are_low_where_a_row_is_known():
    low = {metric.name for metric in judging.judged() if metric.known_when == "low"}
    losses = {"planted_loss", "zlib_ratio", "min_k", "min_k_plus", "loss_over_twin"}
    assert low == {*losses, "gradient_norm", "median_n", "percent_clean_recovery"}


def test_the_rows_of_a_distance_between_distributions_have_none_of_their_own():
    column = "loss_distance_train"
    with_rows, without = ({column: torch.tensor(values)} for values in ([0.9, 0.8], [0.1, 0.2]))
    line = judging.judge(METRICS["loss_distance"], [({column: 0.9}, with_rows)], [({column: 0.2}, without)])
    assert (line["auc_models"], line["auc_rows"], line["auc_rows_lowest"]) == (1.0, None, None)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--seeds", "0"], "--seeds 0: an AUC over models takes at least 2 seeds"),
        (["--seeds", "3", "3"], "at least 2 seeds"),
        (["--seeds", "0", "1000"], "--seeds 1000"),
        (["--data_name", "wiki_fast"], "--data_name wiki_fast"),
        (["--epochs", "0"], "--epochs 0"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--report"], "has both models of 0 seeds"),
    ],
)
def test_bad_inputs_are_one_line_and_exit_2_before_any_work(flags, named, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        in_process(SCRIPT, "--run_dir", tmp_path / "runs", "--output_dir", tmp_path / "out", *flags)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and named in message and message.count("\n") == 1
    assert not load_records(tmp_path)


@pytest.mark.slow
def test_the_committed_report_is_that_of_its_records(tmp_path, capsys):
    folder = ROOT / "results" / "faithfulness"
    if not (folder / "FAITHFULNESS.md").exists():
        pytest.skip("the experiment has not been run here")
    shutil.copytree(folder / "records", tmp_path / "records")
    in_process(SCRIPT, "--report", "--output_dir", tmp_path)
    capsys.readouterr()
    for name in ("FAITHFULNESS.md", "faithfulness.csv"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (folder / name).read_text(encoding="utf-8")
