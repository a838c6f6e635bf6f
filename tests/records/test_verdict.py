"""What `records best` says of a method: no effect, over-forgotten, or nothing."""

import pytest
from handmade import checkpoint, command, outcome, unlearning

from tinymem.records.choose import configurations, unlearning_runs
from tinymem.records.table import named_records
from tinymem.records.verdict import NO_EFFECT, OVER_FORGOTTEN, verdict


def verdicts(folder, runs, twin=None, **before):
    known = {("never_planted",): outcome(**twin)} if twin else {}
    unlearning(folder, checkpoint(), {("unedited",): outcome(**{"memorized": 80.0, **before}), **known, **runs})
    found = configurations(unlearning_runs(named_records(folder)))
    return {one.method: verdict(one) for one in found}


def test_no_effect_is_a_fall_of_less_than_a_point(tmp_path):
    runs = {("obs",): outcome(79.5), ("durable",): outcome(81.0), ("slimming",): outcome(78.9)}
    expected = {"unedited": None, "obs": NO_EFFECT, "durable": NO_EFFECT, "slimming": None}
    assert verdicts(tmp_path, runs) == expected


@pytest.mark.parametrize("split", ["shown", "held_out"])
def test_over_forgotten_is_less_than_the_twin_knows(tmp_path, split):
    loss = f"planted_loss_{split}"
    runs = {
        ("obs",): outcome(1.0, **{loss: 2.0}), ("durable",): outcome(5.0, **{loss: 2.1}),
        ("slimming",): outcome(5.0, **{loss: 2.3}), ("greedy",): outcome(3.0), ("subnet",): outcome(1.5),
    }  # fmt: skip
    found = verdicts(tmp_path, runs, twin={"memorized": 2.0, loss: 2.0}, **{loss: 0.1})
    expected = {"obs": OVER_FORGOTTEN, "durable": None, "slimming": OVER_FORGOTTEN, "greedy": None}
    expected["subnet"] = None  # half a point below the twin is chance
    assert found == {"unedited": None, **expected}


def test_without_a_twin_of_these_seeds_nothing_is_over_forgotten(tmp_path):
    unlearning(tmp_path, checkpoint(seed=1), {("never_planted",): outcome(2.0, planted_loss_shown=1.0)})
    found = verdicts(tmp_path, {("obs",): outcome(0.0, planted_loss_shown=9.0)}, planted_loss_shown=0.1)
    assert found == {"unedited": None, "obs": None}


def test_best_shows_it_where_there_is_one(tmp_path, capsys):
    verdicts(tmp_path, {("obs",): outcome(80.0), ("durable",): outcome(2.0)})
    assert command("best", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "verdict" in lines[1]
    assert any("obs" in line and NO_EFFECT in line for line in lines)
    assert all(NO_EFFECT not in line for line in lines if "durable" in line)
