"""Memorization at equal utility, on curves that can be worked out on paper; and records that always hold utility."""

from dataclasses import replace

import pytest
from handmade import TEXT, checkpoint, edited

from tinymem.attacks.recovery import attacked_models, back_rows, recovery_rows
from tinymem.attacks.registry import ATTACKS
from tinymem.attacks.uwc import Point, WayBack
from tinymem.localize.attacking import attack_original, attack_twin
from tinymem.localize.unlearn import never_planted, unedited
from tinymem.plots import draw_recovery
from tinymem.records.identity import record_digest
from tinymem.records.utility import ACCURACY, PERPLEXITY

KINDS = {"unedited": "attack", "never_planted": "attack_never_planted", "npo": "attack"}


def way(utility, *pairs):
    """A way back whose points have lost and memorized so much."""
    places = range(len(pairs))
    return WayBack(
        utility, tuple(Point(place, memorized, None, lost) for place, (lost, memorized) in zip(places, pairs))
    )


@pytest.mark.parametrize(
    "utility, pairs, memorized",
    [
        (ACCURACY, [(0.5, 10.0), (0.2, 50.0), (0.0, 100.0)], 10.0),  # the edit itself costs less
        (ACCURACY, [(1.0, 10.0), (0.0, 100.0)], 10.0),  # or just as much
        (ACCURACY, [(5.0, 0.0), (3.0, 20.0), (0.0, 80.0)], 60.0),  # two thirds of the way from 3 to 0
        (PERPLEXITY, [(6.0, 0.0), (0.0, 90.0)], 60.0),  # at 2 %
        (ACCURACY, [(4.0, 0.0), (-2.0, 60.0), (0.0, 100.0)], 30.0),  # better than the original in between
        (ACCURACY, [(4.0, 0.0), (0.0, 40.0), (3.0, 70.0), (0.0, 100.0)], 30.0),  # the first of several places
        (PERPLEXITY, [(float("inf"), 0.0), (1.0, 70.0), (0.0, 100.0)], 70.0),
        (ACCURACY, [(0.0, 100.0)], 100.0),  # the original
    ],
)
def test_memorized_at_equal_utility(utility, pairs, memorized):
    assert way(utility, *pairs).at_equal_utility == pytest.approx(memorized)


def records_of(here, column, values):
    """Records of models and of `interpolate` on them.

    values: model -> alpha (None: not attacked) -> memorized, utility.
    """
    found = []
    for name, points in values.items():
        identity = edited(here, name, **({"steps": 20} if name == "npo" else {}))
        for alpha, (memorized, utility) in points.items():
            attack = {"name": "interpolate", "alpha": alpha}
            about = {**identity, "kind": KINDS[name], "parent": record_digest(identity), "attack": attack}
            results = {"percent_memorized_shown": memorized, column: utility}
            found.append({**(identity if alpha is None else about), "results": results})
    return found


NUMBERS = {
    "never_planted": {None: (0.0, 0.9), 0.5: (40.0, 0.9)},
    "unedited": {None: (100.0, 0.9), 0.5: (100.0, 0.9)},
    "npo": {None: (5.0, 0.8), 0.5: (20.0, 0.87), 0.75: (60.0, 0.9)},
}


def test_the_way_back_of_records_by_hand():
    _, models = attacked_models(records_of(checkpoint(), "mean_test_accuracy", NUMBERS))
    twin, original, edit = (model.back for model in models)
    assert [(p.alpha, p.memorized, p.utility) for p in edit.points] == [
        (0.0, 5.0, 0.8), (0.5, 20.0, 0.87), (0.75, 60.0, 0.9), (1.0, 100.0, 0.9)
    ]  # fmt: skip
    assert [p.lost for p in edit.points] == pytest.approx([10, 3, 0, 0])
    figures = [back.at_equal_utility for back in (twin, original, edit)]
    assert figures == pytest.approx([0.0, 100.0, 20 + 40 * 2 / 3])  # 2 of the 3 points from 3 to 0
    rows = back_rows(models, lambda record: record["kind"])
    assert [row["model"] for row in rows] == ["never_planted"] * 3 + ["unedited"] + ["unlearn"] * 4
    assert rows[3] == {"model": "unedited", "alpha": 1.0, "memorized": 100.0, "mean_test_accuracy": 0.9, "lost": 0.0,
                       "at_equal_utility": 100.0}  # fmt: skip
    row = recovery_rows(models, lambda record: record["kind"])[2]
    assert row["at_equal_utility"] == pytest.approx(140 / 3) and row["interpolate"] == 60.0


def test_perplexity_that_is_not_finite():
    values = {"unedited": {None: (90.0, 10.0), 0.5: (90.0, 10.0)}, "npo": {None: (0.0, None), 0.5: (30.0, 10.4)}}
    _, models = attacked_models(records_of(checkpoint(**TEXT), "perplexity", values))
    assert [point.lost for point in models[1].back.points] == pytest.approx([float("inf"), 4.0, 0.0])
    assert models[1].back.at_equal_utility == pytest.approx(60.0)
    axis = draw_recovery("shown", models[1], models[:1]).axes[1]
    assert [len(line.get_xdata()) for line in axis.lines[2:4]] == [100, 2]  # the infinite one is left out


def test_records_without_utility_have_no_such_figure():
    records = records_of(checkpoint(), "mean_test_accuracy", NUMBERS)
    for record in records:
        if "attack" in record:
            del record["results"]["mean_test_accuracy"]
    _, models = attacked_models(records)
    assert len(models) == 3 and not any(model.back for model in models) and not back_rows(models, str)
    assert "at_equal_utility" not in recovery_rows(models, str)[2]
    assert len([axis for axis in draw_recovery("shown", models[2], models[:2]).axes if axis.get_visible()]) == 1
    _, alone = attacked_models(records_of(checkpoint(), "mean_test_accuracy", {"npo": NUMBERS["npo"]}))
    assert alone[0].back is None  # the unedited model's record is not there


def test_the_last_panel_is_the_way_back():
    _, (twin, original, edit) = attacked_models(records_of(checkpoint(), "mean_test_accuracy", NUMBERS))
    *_, axis = [axis for axis in draw_recovery("shown", edit, [twin, original]).axes if axis.get_visible()]
    assert axis.get_xlabel() == "points of accuracy lost" and axis.get_title().endswith("at equal utility 47, twin 0")
    marks = [line.get_xydata().round(6).tolist() for line in axis.lines if line.get_marker() == "o"]
    assert marks == [[[0, 0], [0, 40], [0, 100]], [[0, 100]], [[10, 5], [3, 20], [0, 60], [0, 100]]]


def test_interpolation_is_measured_by_utility_whatever_is_asked_for(subject):
    asked = replace(subject, attack_metrics=("exact_match_share",))
    attacks = [(ATTACKS[name], ATTACKS[name].hyper_parameters()) for name in ("interpolate", "quantize")]
    records = [unedited(asked), never_planted(asked), *attack_original(asked, attacks), *attack_twin(asked, attacks)]
    for record in records[2:]:
        names = {"exact_match_share_shown", "percent_memorized_shown", "mean_test_accuracy", "perplexity"}
        if record["attack"]["name"] == "quantize":
            names = {"exact_match_share_shown"}
        assert names == names & record["results"].keys() and len(names) == 1 + 3 * ("perplexity" in record["results"])
    _, models = attacked_models(records, "shown")
    backs = {model.record["kind"]: model.back for model in models}
    assert [len(backs[kind].points) for kind in ("unedited", "never_planted")] == [1, 7]
    assert backs["never_planted"].points[-1].memorized == 100.0 == backs["unedited"].at_equal_utility
