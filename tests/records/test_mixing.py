"""An attacked, a finer and a foreign record in the same folder never enter another's row."""

import csv

import pytest
from boards import TWIN_MODEL, UNEDITED_MODEL, Model, identities, write_board
from handmade import attacked, checkpoint, command, edited, outcome, production
from small import ROOT, in_process, small_settings

from tinymem.cli.records import print_answer
from tinymem.leaderboard.cases import find_cases
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings
from tinymem.records.choose import best, configurations, experiments, pareto, unlearning_runs
from tinymem.records.cost import Cost
from tinymem.records.identity import is_run, record_digest
from tinymem.records.record import write_record
from tinymem.records.table import named_records
from tinymem.sweeps.job import missing
from tinymem.sweeps.jobs import Checkpoint, Common, localize_jobs, train_job

CHANGES = {  # of an identity: a setting more in a section, another value, a section more
    "finer data": {"data": {"glow": 1}},
    "finer training": {"training": {"glow": 1}},
    "finer forget set": {"forget": {"glow": 1}},
    "another forget set": {"forget": {"unlearn_seed": 7}},
    "an attack": {"attack": {"name": "int8"}},
}


def changed(identity: dict, change: dict) -> dict:
    return identity | {section: {**identity.get(section, {}), **values} for section, values in change.items()}


def write(folder, identity: dict, *results) -> str:
    """Writes a record; returns its digest."""
    write_record(folder, identity, outcome(*results), Cost(1.0, 1.0), "cpu")
    return record_digest(identity)


@pytest.fixture
def job(tmp_path):
    """The unlearning job of two ratios on a checkpoint."""
    hp = METHODS["durable"].hyper_parameters(ratio=(0.1, 0.3))
    settings = small_settings()
    return localize_jobs(Checkpoint(tmp_path / "epoch_6", settings, 6), [(METHODS["durable"], hp)], TaskSettings(),
                         Common("data"), tmp_path / "out")[0]  # fmt: skip


@pytest.mark.parametrize("change", [*CHANGES, "a finer method", "another kind"])
def test_only_the_very_run_counts_as_a_job_s(tmp_path, job, change):

    asked = job.record_identity(0.1)
    other = {**asked, "kind": "measured"} if change == "another kind" else None
    other = other or changed(asked, {"method": {"glow": 1}} if change == "a finer method" else CHANGES[change])
    write(tmp_path / "out", other, 50.0)
    assert missing(job) == [0.1, 0.3]
    write(tmp_path / "out", {**asked, "parent": "any", "fingerprints": {"weights": "any"}}, 40.0)
    assert missing(job) == [0.3]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_memorized_under_other_settings_leaves_all_to_do(tmp_path, job, change):

    write(tmp_path / "out", changed(job.nothing_to_do, CHANGES[change]), 0.0)
    assert missing(job) == [0.1, 0.3]
    write(tmp_path / "out", dict(job.nothing_to_do), 0.0)
    assert missing(job) == []


def test_a_training_with_a_setting_more_is_another(tmp_path):

    job = train_job(small_settings(), tmp_path, Common("data"))
    write(job.folder, changed(dict(job.identity), {"training": {"l1_reg": 0.1}}), 50.0)
    assert missing(job) == [None]
    write(job.folder, dict(job.identity), 50.0)
    assert missing(job) == []


def test_sections_are_equal_or_not_whatever_their_order_and_empty_is_absent():
    run = {"kind": "unlearn", "data": {"a": 1, "b": (1, 2)}, "attack": {}}
    assert is_run({"kind": "unlearn", "data": {"b": [1, 2], "a": 1.0}, "parent": "p"}, run)
    assert not is_run(run, {"kind": "unlearn", "data": {"a": 1}})
    assert not is_run({"kind": "unlearn", "data": {"a": 1}}, run)
    assert not is_run({**run, "attack": {"name": "int8"}}, run)


def study(folder) -> dict:
    """One method at one ratio, its model attacked, a finer task, and a foreign model; their identities."""
    identity = checkpoint()
    write(folder, edited(identity, "unedited"), 90.0, 0.9)
    durable = edited(identity, "durable", ratio=0.1)
    write(folder, durable, 40.0, 0.9)
    write(folder, attacked(durable), 30.0, 0.9)  # better than unattacked, were it the method's
    finer = changed(identity, CHANGES["finer forget set"])
    write(folder, edited(finer, "unedited"), 20.0, 0.9)
    write(folder, edited(finer, "durable", ratio=0.1), 0.0, 0.9)
    foreign = production()
    write(folder, edited(foreign, "unedited"), 10.0, None)
    write(folder, edited(foreign, "durable", ratio=0.1), 0.0, None)
    return identity


def test_best_and_pareto_keep_them_apart(tmp_path, capsys):
    study(tmp_path)
    write(tmp_path, attacked(edited(checkpoint(), "unedited")), 80.0, 0.8)
    said = []
    runs = unlearning_runs(named_records(tmp_path), warn=said.append)
    groups = [{c.method: c for c in best(group, 10)} for group in experiments(configurations(runs))]
    shown = [{name: c.mean("percent_memorized_train") for name, c in group.items()} for group in groups]
    assert not said and len(shown) == 3
    for table in ({"unedited": 90, "durable": 40}, {"unedited": 20, "durable": 0}):
        assert table in shown
    fronts = [[run.row["percent_memorized_train"] for run in front] for front in pareto(runs)]
    assert sorted(fronts) == [[0], [0], [40]]
    assert command("best", tmp_path) == command("pareto", tmp_path) == 0
    assert "attack" not in capsys.readouterr().out


def test_the_unedited_model_measured_in_the_same_folder_comes_first(tmp_path):
    """Another folder's record of it may lack what these runs were measured by."""
    write(tmp_path / "a", edited(checkpoint(), "unedited"), 90.0)
    write(tmp_path / "a", edited(checkpoint(), "durable", ratio=0.1), 40.0)
    write(tmp_path / "b", edited(checkpoint(), "unedited"), None, None, None)
    runs = unlearning_runs(named_records(tmp_path))
    assert [run.row["percent_memorized_train"] for run in runs] == [90, 40]


def test_the_answer_of_a_sweep_says_what_it_leaves_out(tmp_path, capsys):
    """As `best` does: runs without an unedited model of their versions, such as after an upgrade."""
    write(tmp_path, edited(checkpoint(), "unedited"), 90.0)
    write(tmp_path, edited(checkpoint(), "durable", ratio=0.1), 40.0)
    write(tmp_path, edited(checkpoint(seed=1), "durable", ratio=0.1), 40.0)
    print_answer(str(tmp_path))
    told = capsys.readouterr()
    assert "best: durable" in told.out and "left out, no record of the unedited model" in told.err


def test_before_is_the_record_that_the_parent_names(tmp_path):
    """Not one that fits otherwise: two unedited records of equal settings differ in their fingerprints."""
    for weights, before in (("a", 90.0), ("b", 60.0)):
        identity = {**checkpoint(), "fingerprints": {"weights": weights, "forget_set": "f"}}
        write(tmp_path, edited(identity, "unedited"), before)
        write(tmp_path, edited(identity, "durable", ratio=0.1), before - 50)
    runs = unlearning_runs(named_records(tmp_path))
    assert [run.row["change_memorized"] for run in runs if run.method == "durable"] == [-50, -50]
    orphan = {**edited(checkpoint(), "durable", ratio=0.2), "parent": "0" * 16}
    write(tmp_path, orphan, 1.0)
    said = []
    assert len(unlearning_runs(named_records(tmp_path), warn=said.append)) == 4
    assert "no record of the unedited model" in said[0] and "1 of 5" in said[0]


def test_the_comparison_of_mitigations_takes_none_of_them(tmp_path):
    (case,) = find_cases(["noise"], True, 3)
    of_npo, better = identities(case, 0)["npo", 0], Model(0, 0, 0.9, 0)
    method = {**of_npo["method"], "glow": 1}
    others = [changed(of_npo, change) for change in CHANGES.values()] + [{**of_npo, "method": method}]
    more = [({**one, "kind": "attack"} if one.get("attack") else one, better) for one in others]
    models = {("unedited", 0): UNEDITED_MODEL, ("never_planted", 0): TWIN_MODEL, ("npo", 0): Model(2, 1, 0.9, 2)}
    folder = write_board(tmp_path, case, {name: [model] for name, model in models.items()}, more)
    in_process("experiments/basic_train/compare_mitigations.py", "--leaderboard_dir", folder, "--output_dir", tmp_path)
    with open(tmp_path / "noise" / "table.csv", newline="", encoding="utf-8") as file:
        found = {row["method"]: row["percent_memorized_held_out"] for row in csv.DictReader(file)}
    assert found == {"unedited": "100.0", "never-planted twin": "0.0", "npo": "50.0"}


def test_the_records_of_a_demo_take_none_of_them(tmp_path, memorizing_backdoor, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from demo_common import records_of

    from tinymem.models.fingerprint import weights_fingerprint

    model, hp = memorizing_backdoor.checkpoint, METHODS["durable"].hyper_parameters(ratio=(0.1,))
    here = Checkpoint(model, memorizing_backdoor.settings, memorizing_backdoor.settings.training.epochs)
    (job,) = localize_jobs(here, [(METHODS["durable"], hp)], TaskSettings(), Common("data"), tmp_path)
    prints = {"weights": weights_fingerprint(memorizing_backdoor.model), "forget_set": "f"}
    parent = write(tmp_path, {**job.nothing_to_do, "fingerprints": prints}, 90.0)
    run = {**job.record_identity(0.1), "fingerprints": prints, "parent": parent}
    write(tmp_path, run, 40.0)
    write(tmp_path, attacked(run), 30.0)
    for change in CHANGES.values():
        finer = changed(run, change)
        write(tmp_path, {**finer, "parent": write(tmp_path, changed(dict(job.nothing_to_do), change), 8.0)}, 7.0)
    write(tmp_path, {**run, "fingerprints": {**prints, "weights": "of another training"}}, 6.0)
    write(tmp_path, {**job.nothing_to_do, "kind": "never_planted", "fingerprints": prints}, 5.0)
    found = records_of(tmp_path, model, "durable", 0.1)
    memorized = {state: record["results"]["percent_memorized_train"] for state, record in found.items()}
    assert memorized == {"before": 90, "after": 40, "twin": 5}
