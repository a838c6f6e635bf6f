"""The leaderboard's arithmetic against numbers worked out by hand."""

import sys

import numpy as np
import pytest
import torch

from tinymem.leaderboard import score
from tinymem.leaderboard.evidence import Evidence, single_values
from tinymem.leaderboard.report import telling
from tinymem.leaderboard.score import Figure, Jury, Resampling
from tinymem.metrics.metric import Values


def values(*numbers: float, weights=None, groups=None) -> Values:
    sums = torch.tensor(numbers, dtype=torch.float64)
    weights = torch.ones_like(sums) if weights is None else torch.tensor(weights, dtype=torch.float64)
    return Values(sums, weights, None if groups is None else torch.tensor(groups))


def test_the_share_of_the_way_counts_overshooting_as_a_loss():
    now = np.array([100.0, 60, 20, 0, -20, 140])
    assert score.share_of_way(now, np.float64(100), np.float64(20)).tolist() == [0, 0.5, 1, 0.75, 0.5, 0]
    assert np.isnan(score.share_of_way(np.float64(5), np.float64(5), np.float64(5)))


def test_the_harmonic_mean_has_a_floor():
    assert score.harmonic([np.array([0.5]), np.array([1.0])])[0] == pytest.approx(2 / 3)
    assert score.harmonic([np.array([0.0]), np.array([1.0])])[0] == pytest.approx(2 / 101)


def test_the_first_draw_is_the_data_and_equal_sets_are_drawn_alike():
    draws = Resampling([0, 1], 500)
    first, second = values(1, 0, 0, 1), values(0, 0, 0, 1)
    means = [draws.mean(seed, some) for seed, some in ((0, first), (1, second))]
    assert [found[0] for found in means] == [0.5, 0.25] and draws.over_seeds(means)[0] == 0.375
    assert (draws.mean(0, values(1, 0, 0, 1)) == means[0]).all()  # paired: a difference of equals is 0 in every draw
    assert draws.mean(0, first)[1:].std() == pytest.approx(np.sqrt(0.25 / 4), rel=0.1)


def test_a_seed_that_is_drawn_twice_has_its_sequences_resampled_twice():
    """Two seeds alike: whichever is drawn, the mean is of 2 x 4 independent sequences, of variance 1/4 each."""
    draws = Resampling([0, 1], 8000)
    found = draws.over_seeds([draws.mean(seed, values(1, 0, 0, 1)) for seed in (0, 1)])
    assert found.shape == (8001,) and found[0] == 0.5
    assert found[1:].var() == pytest.approx(0.25 / 8, rel=0.05)


def test_draws_of_seeds_and_sequences_are_those_of_a_loop():
    """Of constant sequences a draw is the mean of its seeds; shares of each time that a seed is drawn are its own."""
    draws = Resampling([3, 5, 8], 50)
    of_seed = {3: 1.0, 5: 10.0, 8: 100.0}
    found = draws.over_seeds([draws.mean(seed, values(of_seed[seed])) for seed in draws.seeds])
    drawn = np.random.default_rng(0).integers(3, size=(50, 3))
    assert found[0] == pytest.approx(37) and found[1:] == pytest.approx(np.array([1, 10, 100])[drawn].mean(1))
    some = {seed: draws.mean(seed, values(*range(seed))) for seed in draws.seeds}
    found, met = draws.over_seeds(list(some.values())), dict.fromkeys(draws.seeds, 0)
    for draw, places in enumerate(drawn):
        means = []
        for seed in (draws.seeds[place] for place in places):
            met[seed] += 1
            means.append(some[seed][met[seed]])
        assert found[1 + draw] == pytest.approx(np.mean(means))
    assert [len(each) for each in some.values()] == [1 + times for times in met.values()]


def test_groups_count_equally_and_weights_divide():
    draws = Resampling([0], 3)
    grouped = values(2, 4, 9, weights=[4, 4, 10], groups=[0, 0, 1])
    assert draws.mean(0, grouped)[0] == pytest.approx((6 / 8 + 9 / 10) / 2)


def test_a_seed_without_a_value_is_left_out_and_none_is_nan():
    draws = Resampling([0, 1], 10)
    known, unknown = draws.mean(0, values(1.0)), draws.mean(1, values())
    assert np.isnan(unknown).all() and draws.over_seeds([known, unknown])[0] == 1
    assert np.isnan(draws.mean(1, None)).all() and draws.over_seeds([known, draws.mean(1, None)])[0] == 1
    assert Figure.of(unknown) is None and Figure.of(known) == Figure(1, 1, 1)


def test_an_infinite_value_has_no_figure_and_an_infinite_end_is_the_largest_number():
    assert Figure.of(np.array([np.inf, 1.0, 1.0])) is None
    assert Figure.of(np.array([2.0, np.inf, np.inf, np.nan])) == Figure(2, sys.float_info.max, sys.float_info.max)


def test_figures_are_read_from_the_columns_that_they_are_written_to():
    row = score.columns({"exact": Figure(0.5, 0.25, 0.75), "auc": None})
    assert row == {"exact": 0.5, "exact_low": 0.25, "exact_high": 0.75, "auc": None, "auc_low": None, "auc_high": None}
    assert score.figure_in({name: str(value) for name, value in row.items()}, "exact", 100) == Figure(50, 25, 75)
    assert Figure(-0.04, -1.25, 0.04).words(1) == "0.0 (-1.2 to 0.0)"


def test_ranks_count_only_differences_that_exclude_zero():
    noise = np.random.default_rng(0).normal(0, 0.1, 1001)
    scores = {"best": 0.9 + noise, "close": 0.89 + noise[::-1], "paired": 0.6 + noise, "worst": 0.1 + noise}
    assert score.ranks(scores) == {"best": (1, 2), "close": (1, 3), "paired": (2, 3), "worst": (4, 4)}


def test_single_values_have_the_metric_as_their_mean():
    logs = torch.tensor([np.log(0.5), np.log(1e-9), np.log(0.02)], dtype=torch.float64)
    found = single_values(Values(logs, torch.ones(3)), "percent_extractable_held_out")
    assert found.sums.tolist() == [100, 0, 100]  # 1 - 0.98^100 = 0.87
    shares = single_values(values(0.5, 1.0), "exact_match_share_held_out")
    assert shares.sums.tolist() == [0.5, 1.0]


UTILITY = "mean_test_accuracy"


def record(name: str, kind: str, seed: int = 0, parent: str | None = None, **more) -> dict:
    results = {"mean_test_accuracy": 0.9}
    about = {"format": 2, "kind": kind, "parent": parent, "data": {"seed": seed}, "results": results, "cost": {}}
    return {**about, **({"method": {"name": name}} if name else {}), **more}


@pytest.fixture
def jury():
    """A model that has memorized 4 of 4, its twin 0 of 4, an edit that gives 1 of 4 and under attack 3 of 4."""
    from tinymem.records.identity import record_digest

    models = {
        "original": record("", "unedited"),
        "twin": record("", "never_planted"),
        "edit": record("some", "unlearn", parent="x"),
    }
    rows = {"original": (100, 100, 100, 100), "twin": (0, 0, 0, 0), "edit": (100, 0, 0, 0)}
    records, kept = list(models.values()), {}
    for name, model in models.items():
        digest = record_digest(model)
        exact, tests = torch.tensor(rows[name]).float(), torch.tensor([9, 8]).to(torch.int8)
        kept[digest] = {"percent_memorized_held_out": exact, "mean_test_accuracy": tests}
        kept[digest]["percent_memorized_shown"] = exact
        kept[digest] |= {"mean_test_accuracy.weights": torch.tensor([10, 10]).to(torch.int8)}
        aucs = {"original": [1.0, 1.0], "twin": [0.5, 0.7], "edit": [0.6, 0.8]}[name]
        kept[digest] |= {"auc_loss_held_out": torch.tensor(aucs)}
        back = {"original": 4, "twin": 1, "edit": 3}[name]
        kind = "attack_never_planted" if name == "twin" else "attack"
        for attack, recovered in (("relearn", back), ("interpolate", 4)):
            attacked = record("", kind, parent=digest, attack={"name": attack, "steps": 5})
            records.append(attacked)
            brought = torch.tensor([100.0] * recovered + [0.0] * (4 - recovered))
            kept[record_digest(attacked)] = {"percent_memorized_shown": brought}
    return Jury(Evidence(tuple(records), kept, {}), UTILITY, 50), models["edit"]


def test_the_parts_of_the_score(jury):
    judge, edit = jury
    assert judge.telling == ["percent_memorized_held_out", "auc_loss_held_out"]
    parts = {name: part[0] for name, part in judge.parts([edit]).items()}
    # interpolate (its attacker has the original) does not count; relearning brings back 50 points more than on the twin
    assert parts == pytest.approx({"forget": 0.75, "private": 0.75, "robust": 0.5, "useful": 1.0}, abs=1e-6)
    assert judge.excess([edit])["relearn"][0] == 50 and judge.excess([edit])["interpolate"][0] == 0
    assert judge.score([edit])[0] == pytest.approx(4 / (1 / 0.75 + 1 / 0.75 + 2 + 1))
    assert judge.score(judge.twin)[0] == pytest.approx(1) and judge.score(judge.original)[0] < 0.05


def test_without_a_gap_between_unedited_and_twin_robustness_says_nothing(jury):
    judge, edit = jury
    of_twin = judge.evidence.values[score.record_digest(judge.twin[0])]
    of_twin["percent_memorized_shown"] = torch.full((4,), 100.0)
    assert set(judge.parts([edit])) == {"forget", "private", "useful"}


def test_attacks_that_bring_nothing_out_of_the_unedited_model_say_nothing(jury):
    judge, edit = jury
    assert judge.attacks_tell
    for attacked in judge.evidence.attacks_on(judge.original[0]):
        back = torch.tensor([100.0, 0, 0, 0]) if attacked["attack"]["name"] == "relearn" else torch.full((4,), 100.0)
        judge.evidence.values[score.record_digest(attacked)]["percent_memorized_shown"] = back  # as much as of the twin
    judge = Jury(judge.evidence, UTILITY, 50)
    assert not judge.attacks_tell and set(judge.parts([edit])) == {"forget", "private", "useful"}
    assert "robust is left out" in telling(judge)


def test_what_one_seed_overshoots_does_not_make_up_for_another():
    """Unedited 100, twin 50 % on both seeds; the edits give 75 and 25 %: half of the way each, their mean all of it."""
    models, kept = {}, {}
    for seed, now in ((0, 75.0), (1, 25.0)):
        for name, kind, percent in (("", "unedited", 100.0), ("", "never_planted", 50.0), ("some", "unlearn", now)):
            models[kind, seed] = record(name, kind, seed)
            digest = score.record_digest(models[kind, seed])
            kept[digest] = {"percent_memorized_held_out": torch.tensor([percent] * 4)}
            kept[digest] |= {"mean_test_accuracy": torch.tensor([9]).to(torch.int8)}
    judge = Jury(Evidence(tuple(models.values()), kept, {}), UTILITY, 20)
    edits = [models["unlearn", seed] for seed in (0, 1)]
    assert judge.figure(edits, "percent_memorized_held_out")[0] == 50
    assert judge.shares(edits, ["percent_memorized"])["percent_memorized_held_out"][0] == 0.5


@pytest.mark.parametrize("utility, twin, now, useful", [
    ("mean_test_accuracy", 0.9, 0.45, 0.5), ("mean_test_accuracy", 0.8, 0.9, 1.0),
    ("perplexity", 20.0, 40.0, 0.5), ("perplexity", 20.0, 10.0, 1.0), ("perplexity", 20.0, np.inf, 0.0),
])  # fmt: skip
def test_utility_is_that_of_the_case_relative_to_the_twin(utility, twin, now, useful):
    models, kept = {}, {}
    for name, kind, value in (("", "unedited", 15.0), ("", "never_planted", twin), ("some", "unlearn", now)):
        models[kind] = record(name, kind)
        values = torch.tensor([value]) if utility == UTILITY else torch.tensor([value]).log()
        other = {"mean_test_accuracy": torch.tensor([0.1])}  # language models have both columns
        kept[score.record_digest(models[kind])] = other | {utility: values}
    judge = Jury(Evidence(tuple(models.values()), kept, {}), utility, 20)
    assert judge.useful([models["unlearn"]])[0] == pytest.approx(useful, abs=1e-6)
