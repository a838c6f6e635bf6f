"""The differences of the study's code: each changes what it says and nothing else, alone and together."""

import math
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small import ROOT, in_process
from tiny import new_model, new_task

sys.path.append(str(ROOT / "experiments"))

import published_differences as differences
import published_runs
from reproduction import PUBLISHED_SETTINGS

from tinymem.errors import NotFinite, UserError
from tinymem.localize.neuron import gates, hard_concrete, slimming
from tinymem.localize.registry import METHODS
from tinymem.localize.task import ALL, OTHERS, TEST, TaskSettings, unlearning_task
from tinymem.localize.weight import balanced_subnet, edge_popup, greedy, subnet
from tinymem.metrics.memorization import memorized
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import applied
from tinymem.records.identity import AS_PUBLISHED, UNEDITED
from tinymem.records.table import load_records

PATCHED = (
    (edge_popup, "_new_scores"), (subnet, "unlearn_batches"), (gates, "unlearn_batches"), (slimming, "learn_gates"),
    (hard_concrete, "learn_gates"),
)  # fmt: skip
LIBRARY = tuple(getattr(module, name) for module, name in PATCHED)


def rows(tokens):
    return {row.tobytes() for row in tokens.numpy()}


@pytest.fixture(scope="module")
def backdoor(memorizing_backdoor):
    """A model and its data, of whose planted rows every second one counts as a test trigger: it has memorized some."""
    dataset = memorizing_backdoor.dataset
    test = torch.arange(len(dataset.artifacts)) % 2 == 0
    moved = torch.isin(dataset.order, dataset.artifact_ids[test])
    parts = dict(artifacts=dataset.artifacts.select(~test), artifact_ids=dataset.artifact_ids[~test])
    parts |= dict(test_artifacts=dataset.artifacts.select(test), order=dataset.order[~moved])
    return SimpleNamespace(model=memorizing_backdoor.model, dataset=replace(dataset, **parts))


def test_every_method_has_its_differences():
    assert set(PUBLISHED_SETTINGS) == set(differences.METHODS)
    assert differences.applicable("obs", "backdoor") == ["test_triggers"]
    assert differences.applicable("subnet", "noise") == ["batch_64", "scores_as_stored", "in_order"]
    assert "test_triggers" not in differences.applicable("balanced_subnet", "noise")
    every = {name for method in differences.METHODS for name in differences.applicable(method, "backdoor")}
    assert every == set(differences.DIFFERENCES)
    sets = differences.study("slimming", "backdoor")
    a, b, c, d = differences.applicable("slimming", "backdoor")
    alone = [(a,), (b,), (c,), (d,)]
    assert sets == [(), (a, b, c, d), *alone, (b, c, d), (a, c, d), (a, b, d), (a, b, c)]
    assert differences.study("obs", "backdoor") == [(), ("test_triggers",)]


def test_names_are_checked():
    chosen = differences.chosen
    assert chosen(["all"], "obs", "backdoor") == ("test_triggers",) and chosen(["none"], "obs", "backdoor") == ()
    assert chosen(["in_order", "batch_64"], "subnet", "noise") == ("batch_64", "in_order")  # their own order
    for wrong in (["mixture"], ["nonsense"], ["all", "in_order"]):
        with pytest.raises(UserError, match="^--differences "):
            chosen(wrong, "subnet", "noise")
    with pytest.raises(UserError, match="^--method durable: must be one of balanced_subnet"):
        differences.applicable("durable", "noise")


def test_settings_change_as_said():
    balanced = balanced_subnet.HyperParameters(batch_size=32)
    changed = differences.with_differences(balanced, ["mixture", "batch_64", "scores_as_stored", "test_triggers"])
    assert changed == replace(balanced, unlearn_share=0.0, batch_size=64)
    assert differences.with_differences(greedy.HyperParameters(), ["mixture"]).unlearn_share == 0.0
    assert differences.with_differences(slimming.HyperParameters(), ["no_stop"]).stop_loss == 0.0
    assert differences.with_differences(balanced, ["planted_retained"]) == balanced
    settings = differences.task_settings(TaskSettings(), ["test_triggers", "planted_retained"])
    assert (settings.forget, settings.retain) == (TEST, ALL) and differences.task_settings(
        TaskSettings(), []
    ).retain == OTHERS


def test_counted_test_triggers_are_forgotten_and_planted_rows_retained(backdoor):
    model, dataset = backdoor.model, backdoor.dataset

    def make(*names):
        return differences.make_task(model, dataset, TaskSettings(), names)

    plain, alone = make(), make("test_triggers")
    counted = differences.counted_as_published(dataset, dataset.test_artifacts)
    flags = memorized(model, dataset.test_artifacts, dataset.continuation) & counted
    assert rows(plain.forget.planted) <= rows(dataset.artifacts.planted)
    assert 0 < flags.sum() and rows(alone.forget.planted) == rows(dataset.test_artifacts.planted[flags])
    assert torch.equal(alone.retain, plain.retain)  # what is memorized of the training set is not retained either
    kept = make("planted_retained")
    assert torch.equal(kept.forget.planted, plain.forget.planted)
    assert rows(kept.retain) == rows(plain.retain) | rows(plain.forget.planted)  # on both sides
    both = make("test_triggers", "planted_retained")
    assert rows(both.retain) == rows(kept.retain) and rows(both.forget.planted) == rows(alone.forget.planted)


def test_memorized_noise_is_on_both_sides(memorizing_noise):
    model, dataset = memorizing_noise.model, memorizing_noise.dataset
    task = differences.make_task(model, dataset, TaskSettings(), ["planted_retained"])
    assert len(task.forget) and rows(task.forget.planted) <= rows(task.retain)


def test_scores_are_drawn_as_stored():
    model, optimizer = new_model("gpt2"), edge_popup.ScoreOptimizer(0.1, 0.9, 0.0)

    def bounds():
        found = []
        for matrix in (m for mlp in find_mlps(model) for m in mlp.matrices):
            scored = edge_popup._new_scores(matrix, 0.3, optimizer, torch.Generator().manual_seed(0))
            found.append(scored.score.abs().max().item())
        return found

    plain = bounds()
    with differences.as_published(["scores_as_stored"]):
        stored = bounds()
    # c_fc has 8 inputs and 32 outputs, c_proj 32 and 8: the bounds change places
    for before, after, (old, new) in zip(plain, stored, [(8, 32), (32, 8)] * 2):
        assert 0.9 / math.sqrt(old) < before <= 1 / math.sqrt(old) and 0.9 / math.sqrt(new) < after <= 1 / math.sqrt(
            new
        )
        assert after == pytest.approx(before * math.sqrt(old / new))
    other = new_model("gpt_neox")  # not transposed: as it was
    matrix = find_mlps(other)[0].matrices[0]
    made = [
        new(matrix, 0.3, optimizer, torch.Generator().manual_seed(0))
        for new in (LIBRARY[0], differences.scores_as_stored)
    ]
    assert torch.equal(made[0].score, made[1].score)


def test_in_order_is_the_forget_set_s_order(monkeypatch):
    model, task, seen = new_model("gpt2"), new_task(forget=10), []
    gradients = subnet.gradients
    monkeypatch.setattr(subnet, "gradients", lambda *all: (seen.append(all[2]), gradients(*all))[1])
    hp = subnet.HyperParameters(epochs=2, batch_size=4, dtype="float32")
    with differences.as_published(["in_order"]):
        subnet.learn(model, task, hp, 0.3)
    assert [len(tokens) for tokens in seen] == [4, 4, 2] * 2
    assert torch.equal(torch.cat(seen), torch.cat([task.forget.planted] * 2))
    seen.clear()
    subnet.learn(model, task, hp, 0.3)
    assert not torch.equal(torch.cat(seen)[:10], task.forget.planted)


class Plain(torch.optim.SGD):
    """Records the gradients that steps are made with."""

    used: list = []

    def step(self):
        self.used.append([p.grad.clone() for group in self.param_groups for p in group["params"]])


def slopes(names, monkeypatch, epochs, module=slimming):
    """The gradients of Slimming's steps, of an optimizer that changes nothing."""
    Plain.used = []
    monkeypatch.setattr(gates.torch.optim, "Adam", Plain)
    hp = module.HyperParameters(epochs=epochs, batch_size=4, stop_loss=0.0)
    with differences.as_published(names):
        module.score(new_model("gpt2"), new_task(forget=10), hp)
    return Plain.used


def test_gates_in_order_have_the_rest_as_last_batch(monkeypatch):
    seen, backward = [], gates.backward
    monkeypatch.setattr(gates, "backward", lambda *all: (seen.append(all[2]), backward(*all))[1])
    task = new_task(forget=10)
    with differences.as_published(["in_order"]):
        slimming.score(new_model("gpt2"), task, slimming.HyperParameters(epochs=2, batch_size=4, stop_loss=0.0))
    assert [len(tokens) for tokens in seen] == [4, 4, 2] * 2
    assert torch.equal(torch.cat(seen), torch.cat([task.forget.planted] * 2))


@pytest.mark.parametrize("module", [slimming, hard_concrete])
def test_gradients_pile_up_within_an_epoch(module, monkeypatch):
    """The weights do not change, so that a step's own gradient is the same with and without."""
    plain = slopes([], monkeypatch, 2, module)
    piled = slopes(["one_zero_grad"], monkeypatch, 2, module)
    assert len(plain) == len(piled) == 6  # three batches an epoch
    for start in (0, 3):
        total = [torch.zeros_like(each) for each in plain[0]]
        for step in range(start, start + 3):
            total = [before + each for before, each in zip(total, plain[step])]
            assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(piled[step], total))
    assert not torch.allclose(piled[2][0], plain[2][0])


def test_without_the_stop_test_every_step_is_made():
    def steps_made(names):
        task, hp = new_task(forget=10), slimming.HyperParameters(epochs=20, batch_size=4, lr=0.5)
        made = []
        task.watch.note = lambda *all, **losses: made.append(losses)
        slimming.score(new_model("gpt2"), task, differences.with_differences(hp, names))
        return len(made)

    assert steps_made([]) < 60 == steps_made(["no_stop"])


@pytest.mark.parametrize("fails", [False, True])
def test_the_library_is_as_before_afterwards(fails):
    try:
        with differences.as_published(differences.DIFFERENCES):
            assert all(getattr(module, name) is not old for (module, name), old in zip(PATCHED, LIBRARY))
            if fails:
                raise NotFinite
    except NotFinite:
        pass
    assert tuple(getattr(module, name) for module, name in PATCHED) == LIBRARY


QUICK = {
    "balanced_subnet": ["--epochs", 1], "subnet": ["--epochs", 2], "slimming": [], "hard_concrete": ["--epochs", 2],
    "greedy": ["--ratio", 0.005], "obs": [], "activations": [],
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
        published("--method", "obs", "--study")
    assert ended.value.code == 130 and edge_popup._new_scores is LIBRARY[0]
    monkeypatch.setattr(published_runs, "finish", finish)
    assert len(published("--method", "obs", "--study")) == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--differences", "mixture"], "--differences: whose? Give --method"),
        (["--method", "obs", "--differences", "mixture"], "--differences mixture: obs on backdoor data has test_triggers, all"),
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
        (["--method", "balanced_subnet", "--study", "--forget_term", "npo"], "--unlearn_share 0: only with --forget_term loss"),
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


def test_a_model_that_memorized_nothing_has_nothing_to_forget(backdoor):
    nothing = backdoor.dataset.artifacts.select(slice(0, 0))
    no_rows = {"artifacts": nothing, "artifact_ids": torch.zeros(0, dtype=torch.long)}
    cases = [
        ([], no_rows, "planted rows"),
        (["test_triggers"], {"test_artifacts": nothing}, "test triggers that count"),
    ]
    for names, parts, what in cases:
        with pytest.raises(
            UserError, match=f"^--model_path .* none of the {what}; there is nothing to forget|no backdoor"
        ):
            differences.make_task(backdoor.model, replace(backdoor.dataset, **parts), TaskSettings(), names)


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


def test_trigger_metrics_divide_the_triggers(backdoor):
    model, dataset = backdoor.model, backdoor.dataset
    counted = differences.counted_as_published(dataset, dataset.test_artifacts)
    flags = memorized(model, dataset.test_artifacts, dataset.continuation)
    assert 0 < counted.sum() < len(counted)
    row = published_runs.measure(model, dataset, metrics=published_runs.trigger_metrics(dataset)).row
    for name, some in [("counted", flags[counted]), ("left_out", flags[~counted])]:
        expected = 100 * some.float().mean().item() if len(some) else None
        assert row[f"percent_memorized_{name}"] == (expected if expected is None else pytest.approx(expected))
