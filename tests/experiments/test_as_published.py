"""as_published.py: what it runs, records, repeats and refuses."""

import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import ROOT, in_process
from tiny import new_task

sys.path.append(str(ROOT / "experiments"))

import published_differences as differences
import published_runs

from tinymem.errors import NotFinite, UserError
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.localize.weight import edge_popup
from tinymem.metrics.memorization import memorized
from tinymem.models.edit import applied
from tinymem.records.identity import AS_PUBLISHED, UNEDITED
from tinymem.records.table import load_records

NEW_SCORES = edge_popup.new_scores  # the library's own
QUICK = {
    "balanced_subnet": ["--epochs", 1], "subnet": ["--epochs", 2], "slimming": [], "hard_concrete": ["--epochs", 2],
    "greedy": ["--ratio", 0.005], "obs": [], "activations": [],
    "integrated_gradients": ["--ig_steps", 2], "durable": [], "durable_agg": [],
}  # fmt: skip


@pytest.fixture
def published(tmp_path, memorizing_backdoor, backdoor, monkeypatch):
    """published(*flags) runs the script on a small model with a backdoor; returns its records."""
    monkeypatch.setattr(published_runs, "load_dataset", lambda *all: backdoor.dataset)
    path = tmp_path / "model" / "epoch"
    shutil.copytree(memorizing_backdoor.checkpoint, path)

    def run(*flags):
        common = ["--data_dir", tmp_path / "data", "--device", "cpu", "--results_dir", tmp_path / "tables"]
        in_process("experiments/as_published.py", "--model_path", path, *flags, *common)
        found = load_records(path.parent)
        return [record for record in found if record["kind"] == AS_PUBLISHED]

    run.path, run.tables = path, tmp_path / "tables"
    return run


@pytest.mark.parametrize("method", differences.METHODS)
def test_without_differences_it_is_the_library_s_run(method, published, backdoor):
    """The same masks, so that every result of the record is the same to the last bit."""
    (record,) = published("--method", method, "--differences", "none", *QUICK[method])
    model, dataset = backdoor.model, backdoor.dataset
    task = unlearning_task(model, dataset, TaskSettings())
    own = METHODS[method]
    names = [name for name in record["method"] if name not in ("name", "differences")]
    hp = own.hyper_parameters(
        **{name: record["method"][name] for name in names if name != "ratio"}, ratio=(record["method"]["ratio"],)
    )
    ((_, edit),) = own.run(model, task, hp)
    with applied(model, edit):
        row = published_runs.measure(model, dataset, task.microbatch).row
    assert {name: record["results"][name] for name in row} == row
    assert record["method"]["differences"] == [] and record["method"]["name"] == f"{method}_as_published"
    assert record["results"]["forgotten"] == len(task.forget) and record["results"]["retained"] == len(task.retain)


def test_a_study_is_recorded_and_repeated_only_where_it_lacks_runs(published, capsys):
    flags = ["--method", "activations", "--study", "--attack", "relearn"]
    records = published(*flags)
    runs = [record for record in records if not record.get("attack")]
    assert sorted(record["method"]["differences"] for record in runs) == [[], ["test_triggers"]]
    (unedited,) = (r for r in load_records(published.path.parent) if r["kind"] == UNEDITED)
    for record in runs:
        results, before = record["results"], unedited["results"]
        counts = results["percent_memorized_counted"], results["percent_memorized_left_out"]
        assert min(counts) <= results["percent_memorized_test"] <= max(counts)
        lost = 100 * (before["mean_test_accuracy"] - results["mean_test_accuracy"])
        assert results["accuracy_lost"] == lost and results["percent_memorized_train"] is not None
        assert results["perplexity_rise_percent"] == 100 * (results["perplexity"] / before["perplexity"] - 1)
    attacks = [record for record in records if record.get("attack")]
    assert len(attacks) == 2 * 4 and {record["attack"]["steps"] for record in attacks} == {5, 10, 30, 80}
    for record in attacks:
        share = record["attack"]["share"] * record["results"]["forgotten"]
        assert round(share) == min(published_runs.SEEN, record["results"]["forgotten"] // 2)
        assert {"percent_memorized_train", "percent_memorized_counted"} <= set(record["results"])
        assert not any("accuracy" in name for name in record["results"])
    written = {path: path.stat().st_mtime_ns for path in published.path.parent.rglob("records/*.json")}
    gone = next(
        path for path in written if '"differences": []' in path.read_text() and '"attack": {' not in path.read_text()
    )
    gone.unlink()
    published(*flags)
    again = {path: path.stat().st_mtime_ns for path in published.path.parent.rglob("records/*.json")}
    assert again.keys() == written.keys() and {p for p in again if again[p] != written[p]} == {gone}
    table = (published.tables / "as_published.md").read_text()
    assert "| (unedited) |" in table and "| none |" in table and "| all |" in table and "relearned" in table
    lines = (published.tables / "as_published.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 and "percent_memorized_left_out_ci95" in lines[0]
    capsys.readouterr()
    shutil.rmtree(published.tables)
    published("--report")
    assert (published.tables / "as_published.md").read_text() == table


def test_an_interrupted_study_goes_on(published, monkeypatch, capsys):
    finish = published_runs.finish

    def interrupted(run, *others):
        if run.identity["method"]["differences"]:
            raise KeyboardInterrupt
        return finish(run, *others)

    monkeypatch.setattr(published_runs, "finish", interrupted)
    with pytest.raises(SystemExit) as ended:
        published("--method", "durable", "--study")
    assert ended.value.code == 130 and edge_popup.new_scores is NEW_SCORES
    monkeypatch.setattr(published_runs, "finish", finish)
    assert len(published("--method", "durable", "--study")) == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--differences", "mixture"], "--differences: whose? Give --method"),
        (["--method", "obs", "--differences", "mixture"],
         "--differences mixture: obs on backdoor data has test_triggers, piled_gradients"),
        (["--method", "nonsense", "--study"], "--method nonsense: must be one of"),
        (["--method", "obs"], "--method: only with --differences or --study"),
        (["--small", "--study"], "--small: trains its own models"),
        (["--study", "--sequences", 3], "--sequences: only with --slip zero_out"),
        (["--method", "obs", "--study", "--holdout_fraction", 1], "--holdout_fraction 1.0: must be"),
        (["--study", "--slip", "triggers"], "--slip: not allowed with argument --study"),
        (["--report", "--force"], "--force: only with --differences or --study"),
        (["--report"], "model: no runs with --differences or --study recorded yet"),
        (["--method", "--study"], "--method: expected one argument"),
        (["--slip", "triggers"], "--results_dir: only with --differences or --study, or --report"),
        (["--method", "balanced_subnet", "--study", "--forget_term", "npo"],
         "--unlearn_share 0: only with --forget_term loss"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(flags, message, published, capsys):
    with pytest.raises(SystemExit) as ended:
        published(*flags)
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and message in told and len(told.splitlines()) == 1


def test_mistakes_are_told_before_any_work(published, capsys):
    """Also those of where tables are written, and of settings that one difference rules out."""
    with pytest.raises(SystemExit):
        published("--method", "balanced_subnet", "--study", "--forget_term", "npo")
    assert not published.tables.exists()
    published.tables.write_text("a file")
    with pytest.raises(SystemExit):
        published("--study")
    assert not {record["kind"] for record in load_records(published.path.parent)} & {AS_PUBLISHED, UNEDITED}
    assert f"{published.tables}: cannot make this folder" in capsys.readouterr().err


def test_of_one_sequence_none_is_left_to_relearn():
    task = new_task(forget=1)
    with pytest.raises(UserError, match="^--attack relearn: what is forgotten is one sequence"):
        published_runs.relearning(replace(task, held_out=task.held_out.select(slice(0, 0))))
    ((_, hp),) = published_runs.relearning(new_task(forget=2))
    assert hp.share == 0.5


def test_tables_are_written_also_where_one_run_has_no_finite_numbers(published, monkeypatch, capsys):
    finish = published_runs.finish

    def failing(run, *others):
        if run.identity["method"]["differences"]:
            raise NotFinite("its scores are not finite numbers")
        return finish(run, *others)

    monkeypatch.setattr(published_runs, "finish", failing)
    with pytest.raises(SystemExit) as ended:
        published("--method", "activations", "--study")
    assert ended.value.code == 2 and "activations with test_triggers differences: its scores" in capsys.readouterr().err
    assert "| none |" in (published.tables / "as_published.md").read_text()


def test_nothing_to_forget_is_told_before_any_work(published, backdoor, monkeypatch, capsys):
    triggers = backdoor.dataset.test_artifacts
    planted = triggers.planted.where(triggers.planted == triggers.clean, 3)
    other = replace(backdoor.dataset, test_artifacts=replace(triggers, planted=planted))
    monkeypatch.setattr(published_runs, "load_dataset", lambda *all: other)
    with pytest.raises(SystemExit) as ended:
        published("--method", "obs", "--study")
    assert ended.value.code == 2 and "none of the test triggers that count" in capsys.readouterr().err
    kinds = {record["kind"] for record in load_records(published.path.parent)}
    assert not kinds & {AS_PUBLISHED, UNEDITED}


def test_every_model_is_checked_before_any_work(published, backdoor, capsys):
    empty = published.path.parent.with_name("empty") / "epoch"
    shutil.copytree(published.path, empty)
    weights = load_file(empty / "model.safetensors")
    save_file(
        {name: torch.zeros_like(each) for name, each in weights.items()}, empty / "model.safetensors", {"format": "pt"}
    )
    for flags, message in [
        ([empty, "--method", "obs", "--study"], f"--model_path {empty}: has memorized none of the"),
        ([empty.with_name("gone"), "--report"], f"{empty.with_name('gone')}: "),
    ]:
        with pytest.raises(SystemExit) as ended:
            published(*flags)
        told = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and message in told and len(told.splitlines()) == 1
    kinds = {record["kind"] for record in load_records(published.path.parent)}
    assert not kinds & {AS_PUBLISHED, UNEDITED}


def test_a_method_without_differences_on_these_data():
    with pytest.raises(UserError, match="activations on noise data has all, none$"):
        differences.chosen(["mixture"], "activations", "noise")


def test_trigger_metrics_divide_the_triggers(backdoor):
    model, dataset = backdoor.model, backdoor.dataset
    counted = differences.counted_as_published(dataset, dataset.test_artifacts)
    flags = memorized(model, dataset.test_artifacts, dataset.continuation)
    assert 0 < counted.sum() < len(counted)
    row = published_runs.measure(model, dataset, metrics=published_runs.trigger_metrics(dataset)).row
    for name, some in [("counted", flags[counted]), ("left_out", flags[~counted])]:
        expected = 100 * some.float().mean().item() if len(some) else None
        assert row[f"percent_memorized_{name}"] == (expected if expected is None else pytest.approx(expected))
