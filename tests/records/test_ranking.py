"""The answer to which run forgets best: ranks, the winner, the cheapest run, in words."""

import csv
from dataclasses import fields

import pytest
import torch
from handmade import TEXT, checkpoint, command, outcome, unlearning

from tinymem.cli.records import _interval
from tinymem.localize.registry import METHODS
from tinymem.records.choose import best, configurations, unlearning_runs
from tinymem.records.gather import gather
from tinymem.records.interval import share_interval
from tinymem.records.ranking import answer, ranked
from tinymem.records.ranking_rows import summary
from tinymem.records.record import write_values
from tinymem.records.strength import STRENGTHS
from tinymem.records.table import named_records

BEFORE = {("unedited",): outcome(50.0, None, 20.0)}
STILL = ("hard_concrete", ("ratio", 0.001)), outcome(50.0, None, 20.1)
RUINED = ("hard_concrete", ("ratio", 0.01)), outcome(0.0, None, 90.0)
NEAR = ("hard_concrete", ("ratio", 0.005)), outcome(20.0, None, 30.0)
SLOW = ("balanced_subnet", ("ratio", 0.1)), outcome(0.0, None, 21.0)
FAST = ("obs", ("ratio", 0.2)), outcome(0.0, None, 21.5)


def found(folder, *runs, identity=None, before=BEFORE):
    unlearning(folder, identity or checkpoint(**TEXT), {**before, **dict(runs)})
    return configurations(unlearning_runs(named_records(folder)))


def names(some) -> list[tuple]:
    return [(one.method, one.hyper_parameters["ratio"]) for one in some]


def test_a_run_that_changed_nothing_is_no_best_where_another_forgets(tmp_path):
    some = found(tmp_path, STILL, RUINED, NEAR)
    assert names(ranked(some, 10).places) == [("hard_concrete", 0.005)]  # of those over the limit the nearest to it
    assert names(ranked(some, 1000).places) == [("hard_concrete", 0.01)]
    assert [one.method for one in best(some, 10)] == ["unedited"]


def test_a_method_whose_runs_all_changed_nothing_is_listed(tmp_path):
    ranking = ranked(found(tmp_path, STILL), 10)
    assert names(ranking.places) == [("hard_concrete", 0.001)] and ranking.winner is None
    assert answer(ranking) == ["best: none, no run lowered memorization by a point"]


def test_ranks_within_the_limit_then_over_it_then_without_effect(tmp_path):
    still = ("slimming", ("ratio", 0.1)), outcome(50.0, None, 20.0)
    over = ("subnet", ("ratio", 0.1)), outcome(5.0, None, 25.0)
    ranking = ranked(found(tmp_path, still, RUINED, NEAR, over, FAST, SLOW), 10)
    methods = [one.method for one in ranking.places]
    assert methods == ["balanced_subnet", "obs", "subnet", "hard_concrete", "slimming"]
    assert ranking.winner is ranking.places[0] and [ranking.over(one) for one in ranking.places] == [0, 0, 1, 1, 0]


def test_the_sentence_names_the_winner_and_the_cheapest_run(tmp_path):
    found(tmp_path, FAST, RUINED)  # a second each; the ruined model is over the limit
    unlearning(tmp_path, checkpoint(**TEXT), {SLOW[0]: SLOW[1]}, seconds=60.0)
    ranking = ranked(configurations(unlearning_runs(named_records(tmp_path))), 10)
    assert answer(ranking) == [
        "best: balanced_subnet 0.1: 0 % memorized, perplexity +5 %",
        "cheapest that forgets everything: obs 0.2: 0 % memorized, perplexity +7.5 %, 1 s",
    ]


def test_a_run_that_is_hardly_faster_is_not_the_cheapest(tmp_path):
    found(tmp_path, FAST)  # a second
    unlearning(tmp_path, checkpoint(**TEXT), {SLOW[0]: SLOW[1]}, seconds=1.1)
    ranking = ranked(configurations(unlearning_runs(named_records(tmp_path))), 10)
    assert answer(ranking)[1] == "cheapest that forgets everything: the same run, 1.1 s"


def test_the_sentence_tells_a_run_from_the_others_of_its_method(tmp_path):
    other = ("obs", ("ratio", 0.2), ("num_grads", 8)), outcome(30.0, None, 21.5)
    mine = ("obs", ("ratio", 0.2), ("num_grads", 64)), outcome(0.0, None, 21.5)
    assert answer(ranked(found(tmp_path, other, mine), 10)) == [
        "best: obs 0.2 (num_grads 64): 0 % memorized, perplexity +7.5 %",
        "cheapest that forgets everything: the same run, 1 s",
    ]


def test_the_interval_of_one_seed_comes_from_its_sequences(tmp_path):
    some = found(tmp_path, SLOW)
    name = some[-1].runs[0].row["record"]
    write_values(tmp_path / name, {"percent_memorized_train": torch.tensor([0.0] * 20)})
    row = summary(ranked(some), some[-1], tmp_path)
    assert row["percent_memorized_train_ci95"] == pytest.approx(16.1, abs=0.05)  # Wilson: 0 to 0.161
    assert row["perplexity_ci95"] is None


def test_wilsons_interval_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    for hits, count, ends in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ):
        assert share_interval(hits / count, count) == pytest.approx(ends, abs=5e-5)
    assert share_interval(1.0, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


def test_a_run_of_unknown_duration_is_not_the_cheapest(tmp_path):
    found(tmp_path, FAST)
    unlearning(tmp_path, checkpoint(**TEXT), {SLOW[0]: SLOW[1]}, seconds=None)
    lines = answer(ranked(configurations(unlearning_runs(named_records(tmp_path))), 10))
    assert lines[-1].startswith("cheapest that forgets everything: obs 0.2") and lines[-1].endswith(", 1 s")


def test_a_lucky_seed_is_not_the_cheapest(tmp_path):
    for seed in (0, 1):
        few = [FAST] if seed else []
        slow = ("obs", ("ratio", 0.3)), outcome(0.0, None, 21.0)
        some = found(tmp_path / str(seed), slow, *few, identity=checkpoint(seed, **TEXT))
    some = configurations(unlearning_runs(named_records(tmp_path)))
    assert names([ranked(some, 10).cheapest]) == [("obs", 0.3)]


def test_the_cheapest_forgets_the_validation_sequences_too(tmp_path):
    def trial(memorized, validation):
        return outcome(memorized, None, 20.0, percent_memorized_validation=validation)

    before = {("unedited",): trial(50.0, 50.0)}
    runs = [(("obs", ("ratio", 0.1)), trial(0.0, 50.0)), (("obs", ("ratio", 0.3)), trial(5.0, 0.0))]
    assert ranked(found(tmp_path / "none", *runs, before=before)).cheapest is None
    runs.append((("obs", ("ratio", 0.5)), trial(0.0, 0.0)))
    assert names([ranked(found(tmp_path / "one", *runs, before=before)).cheapest]) == [("obs", 0.5)]


def test_a_run_that_takes_no_time_is_the_cheapest(tmp_path):
    found(tmp_path, FAST)
    unlearning(tmp_path, checkpoint(**TEXT), {SLOW[0]: SLOW[1]}, seconds=0.0)  # less than records can tell
    lines = answer(ranked(configurations(unlearning_runs(named_records(tmp_path))), 10))
    assert lines[-1] == "cheapest that forgets everything: the same run, 0 s"


def test_the_only_run_that_forgets_is_named_without_a_duration(tmp_path):
    unlearning(tmp_path, checkpoint(**TEXT), {**BEFORE, SLOW[0]: SLOW[1]}, seconds=None)
    lines = answer(ranked(configurations(unlearning_runs(named_records(tmp_path))), 10))
    assert lines[-1] == "cheapest that forgets everything: the same run"


def test_no_winner_over_the_limit(tmp_path):
    lines = answer(ranked(found(tmp_path, RUINED, NEAR), 10))
    assert lines == [
        "best: none, every run that forgets raises perplexity by more than 10 %; the nearest is hard_concrete 0.005: "
        "20 % memorized, perplexity +50 %"
    ]


@pytest.mark.parametrize(("accuracy", "wins"), [(0.8, True), (0.2, False)])
def test_a_number_model_is_judged_by_its_trade_off(tmp_path, accuracy, wins):
    before = {("unedited",): outcome(50.0, 0.9)}
    ranking = ranked(
        found(tmp_path, (("obs", ("ratio", 0.1)), outcome(0.0, accuracy)), identity=checkpoint(), before=before)
    )
    assert (ranking.winner is not None) == wins and (ranking.cheapest is not None) == wins
    cost = f"obs 0.1: 0 % memorized, accuracy {100 * (accuracy - 0.9):+.3g} points"
    assert cost in answer(ranking)[0] and answer(ranking)[0].startswith("best: none") != wins


def test_a_winner_that_knows_less_than_the_twin_is_said(tmp_path):
    twin = {("never_planted",): outcome(3.0, None, 20.0)}
    assert answer(ranked(found(tmp_path, SLOW, before=BEFORE | twin), 10))[0].endswith("%, over-forgotten")


def test_best_prints_marks_and_writes_ranks(tmp_path, capsys):
    found(tmp_path / "runs", STILL, NEAR, SLOW)
    assert command("best", tmp_path / "runs", "--output", tmp_path / "best.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "<- best" in line] == [
        line for line in lines if line.startswith("1 <- best  balanced")
    ]
    assert any("hard_concrete" in line and " over " in line for line in lines)
    assert any(
        {"rank", "mem_train", "ppl_rise_percent"} <= set(line.split()) for line in lines
    )  # what decides is shown
    assert "best: balanced_subnet 0.1: 0 % memorized, perplexity +5 %" in lines
    with open(tmp_path / "best.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["", "1", "2"] and [row["limit"] for row in rows] == ["", "", "over"]


@pytest.mark.parametrize(
    ("mean", "half", "ends", "text"),
    [
        (2.0, 6.0, (0, 100), "2 (0 to 8)"),
        (97.0, 6.0, (0, 100), "97 (91 to 100)"),
        (40.0, 6.0, (0, 100), "40 ± 6"),
        (40.0, None, (0, 100), 40.0),
    ],
)
def test_an_interval_ends_where_the_scale_does(mean, half, ends, text):
    assert _interval(mean, half, ends) == text


def test_gather_sorts_by_kind_method_and_strength(tmp_path):
    runs = [((name, ("ratio", ratio)), outcome(1.0)) for name in ("subnet", "mine") for ratio in (0.1, 0.02, 0.3)]
    found(tmp_path, *runs)
    rows = gather(tmp_path)[1]
    assert [(row.get("method.name"), row.get("method.ratio")) for row in rows] == [
        (None, None),
        *(("mine", ratio) for ratio in (0.02, 0.1, 0.3)),
        *(("subnet", ratio) for ratio in (0.02, 0.1, 0.3)),
    ]


def test_every_method_calls_its_strength_one_of_these_and_has_no_other():
    for method in METHODS.values():
        names = {field.name for field in fields(method.hyper_parameters)} & set(STRENGTHS)
        assert names == ({method.strength} if method.strength else set()), method.name
