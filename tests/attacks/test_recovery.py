"""Curves, areas and excess over the twin, from records made by hand; and edits that only hide."""

import math
from dataclasses import replace

import pytest
import torch
from handmade import checkpoint, edited

from tinymem.attacks.recovery import Attacked, Curve, attacked_models, averaged, curve_rows, recovery_rows
from tinymem.attacks.registry import ATTACKS
from tinymem.cli.unlearning import print_recovery
from tinymem.localize.attacking import attack_original, attack_twin
from tinymem.localize.subject import Run
from tinymem.localize.unlearn import finish, never_planted, unedited
from tinymem.metrics.memorization import memorized
from tinymem.models.edit import Weights, Zeros, applied
from tinymem.pages.report_charts import recovery_charts
from tinymem.plots import draw_recovery
from tinymem.records.cost import Cost
from tinymem.records.identity import record_digest

QUICK = {
    "quantize": {}, "weight_noise": {}, "prune": {}, "interpolate": {}, "prefix_shift": dict(tokens=(2,)),
    "prefix_shorten": dict(tokens=(2,)), "context_shift": dict(context_tokens=4), "similar_tokens": {}, "sampling": {},
    "logit_lens": {},
    "relearn": dict(steps=(5, 20), lr=1e-3, share=0.5, dtype="float32"),
    "relearn_clean": dict(steps=(20,), lr=1e-3, dtype="float32"),
    "relearn_all": dict(steps=(5,), lr=1e-3, dtype="float32"),
    "relearn_adaptive": dict(steps=(5, 20), lrs=(1e-3,), kl_budget=(0.5,), share=0.5, dtype="float32"),
    "soft_prompt": dict(steps=(20,), vectors=2),
}  # fmt: skip


def result(identity, kind, percent, **attack):
    about = {**identity, "kind": kind, "parent": record_digest(identity), "attack": attack} if attack else identity
    return {**about, "results": {"percent_memorized_shown": percent}}


def test_curves_by_hand():
    here = checkpoint()
    before, twin, run = edited(here, "unedited"), edited(here, "never_planted"), edited(here, "npo", steps=20)
    records = [result(identity, "", value) for identity, value in ((before, 100.0), (twin, 5.0), (run, 10.0))]
    for steps, values in ((1, (100.0, 10.0, 20.0)), (10, (100.0, 20.0, 70.0)), (100, (100.0, 90.0, 80.0))):
        kinds = ("attack", "attack_never_planted", "attack")
        for identity, kind, value in zip((before, twin, run), kinds, values):
            records.append(result(identity, kind, value, name="relearn", steps=steps, share=0.1))
    records.append(result(run, "attack", 10.0, name="quantize", bits=4))
    records.append(result(edited(checkpoint(seed=1), "npo", steps=20), "attack", 99.0, name="quantize", bits=4))
    split, models = attacked_models(records)
    assert split == "shown" and [len(model.curves) for model in models] == [1, 1, 2]
    curve = models[2].curves[1]  # in the registry's order: after quantization
    assert curve.points == ((1, 20.0), (10, 70.0), (100, 80.0)) and curve.strength == "steps"
    assert curve.area == pytest.approx((45 + 75) / 2)  # evenly spaced in the logarithm
    assert curve.excess(models[1].curves[0]) == 50.0 and curve.excess(None) is None
    rows = recovery_rows(models, lambda record: record["kind"])
    assert rows[2] == {"model": "unlearn", "before": 10.0, "excess": 50.0, "worst": "relearn", "quantize": 10.0,
                       "relearn": 80.0}  # fmt: skip
    assert rows[1]["excess"] is None and rows[0]["excess"] == 90.0
    alone = recovery_rows([models[2]], lambda record: record["kind"])[0]  # without a twin to compare with
    assert (alone["excess"], alone["most"], alone["worst"]) == (None, 80.0, "relearn")


def test_an_attack_that_trains_on_all_that_was_shown_is_judged_by_it():
    here, values = checkpoint(), {}
    before, run = edited(here, "unedited"), edited(here, "npo", steps=20)
    for identity, kind, attack, held_out, shown in (
        (before, "", {}, 100.0, 90.0), (run, "", {}, 20.0, 10.0),
        (run, "attack", dict(name="relearn_all", steps=5), 30.0, 80.0),
        (run, "attack", dict(name="quantize", bits=4), 25.0, 15.0),
    ):  # fmt: skip
        found = result(identity, kind, shown, **attack)
        found["results"]["percent_memorized_held_out"] = held_out
        values[kind, attack.get("name")] = found
    split, (model,) = attacked_models([result(before, "", 90.0), *values.values()])
    assert split == "held_out" and model.before == 20.0
    assert {c.attack: (c.before, c.worst) for c in model.curves} == {
        "quantize": (20.0, 25.0),
        "relearn_all": (10.0, 80.0),
    }
    rows = curve_rows([model], lambda record: record["kind"])
    assert [(row["attack"], row["area"], row["excess"]) for row in rows] == [
        ("quantize", 25.0, None), ("relearn_all", 80.0, None)
    ]  # fmt: skip


def curves_of(**points):
    """Attacked models by kind, each with one curve of `relearn`."""
    made = []
    for kind, some in points.items():
        curve = Curve("relearn", {}, "steps", some, before=some[0][1] - 1)
        identity = edited(checkpoint(), kind, **({"steps": 20} if kind == "npo" else {}))
        made.append(Attacked(identity, 7.0, (curve,)))
    return made


@pytest.mark.parametrize(
    "sizes, strength, points",
    [((0.1, 0.2), "size", [((0.1, 1.0), (0.2, 2.0))]), ((0.1,), None, [((0.0, 1.0),)])],
)
def test_the_strength_of_ones_own_attack_is_the_number_that_varies(sizes, strength, points):
    before = edited(checkpoint(), "unedited")
    records = [result(before, "", 0.0)]
    for place, size in enumerate(sizes, 1):
        records.append(result(before, "attack", float(place), name="my_attack", size=size, draws=3, fast=True))
    _, (model,) = attacked_models(records)
    assert [curve.strength for curve in model.curves] == [strength]
    assert [curve.points for curve in model.curves] == points


def test_areas_are_compared_at_the_same_strengths():
    """The twin was attacked with more steps, which bring back more."""
    twin, model = curves_of(never_planted=((1, 10.0), (10, 20.0), (100, 90.0)), npo=((1, 12.0), (10, 22.0)))
    (row,) = [row for row in curve_rows([twin, model], lambda record: record["kind"]) if row["model"] == "unlearn"]
    assert (row["area"], row["twin_area"], row["twin_worst"], row["excess"]) == (17.0, pytest.approx(15.0), 20.0, 2.0)
    assert draw_recovery("shown", model, [twin]).axes[0].get_title() == "relearn, area 17, twin 15"
    (twin,) = curves_of(never_planted=((1, 10.0),))
    row, _ = curve_rows([model, twin], lambda record: record["kind"])
    assert "twin_area" not in row and row["excess"] == 2.0  # it lacks a strength
    assert draw_recovery("shown", model, [twin]).axes[0].get_title() == "relearn, area 17"


def test_speed_against_the_twin_by_hand():
    def curve(before, *values):
        return Curve("relearn_all", {}, "steps", tuple(zip((1, 10, 100), values)), before)

    twin, model = curve(0.0, 0.0, 20.0, 40.0), curve(10.0, 50.0, 90.0, 90.0)
    assert model.speed_ratio(twin) == pytest.approx(20 / 70)  # areas 20 and 80
    assert curve(5.0, 25.0).speed_ratio(twin) == 0.0  # in one step the twin has learned nothing
    assert curve(5.0, 5.0, 10.0, 15.0).speed_ratio(twin) == 1.0  # slower than the twin
    assert curve(50.0, 50.0, 40.0, 30.0).speed_ratio(twin) == 1.0  # gains nothing
    assert model.speed_ratio(curve(0.0, 0.0)) is None and model.speed_ratio(None) is None
    assert curve(math.nan, 1.0).speed_ratio(twin) is None
    models = [
        Attacked(edited(checkpoint(), kind), 0.0, (c,)) for kind, c in (("never_planted", twin), ("unedited", model))
    ]
    rows = curve_rows(models, lambda record: record["kind"])
    assert [row["speed_ratio"] for row in rows] == [1.0, pytest.approx(20 / 70)]
    title = draw_recovery("held_out", models[1], models).axes[0].get_title()
    assert title.split() == "relearn all (shown), area 80, twin 20, R 0.29".split()


def test_a_mean_over_seeds_has_the_curves_and_points_that_all_have():
    (one,) = curves_of(npo=((1, 10.0), (10, 20.0), (100, 30.0)))
    (two,) = curves_of(npo=((1, 30.0), (100, 50.0)))
    alone = replace(one, curves=(*one.curves, Curve("prune", {}, "share", ((0.1, 5.0),), 9.0)))
    (curve,) = averaged([alone, two]).curves
    assert curve.points == ((1, 20.0), (100, 40.0)) and curve.before == 19.0
    assert len(averaged([alone, alone]).curves) == 2


def test_figures_of_models_with_other_strengths_share_their_places():
    """The twin was attacked at more strengths, and at others, than the edited model."""
    *bounds, model = curves_of(never_planted=((5, 10.0), (30, 30.0)), npo=((10, 20.0), (80, 80.0)))
    axis = draw_recovery("shown", model, bounds).axes[0]
    twin, edit = ([line.get_xdata().tolist(), line.get_ydata().tolist()] for line in axis.lines)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["none", "5", "10", "30", "80"]
    assert twin == [[0, 1, 3], [9, 10, 30]] and edit == [[0, 2, 4], [19, 20, 80]]


def test_an_attack_without_strength_has_one_place():
    model = Attacked(edited(checkpoint(), "unedited"), 9.0, (Curve("mine", {}, None, ((0.0, 30.0),), 9.0),))
    axis = draw_recovery("shown", model, []).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["none", "attacked"]
    assert axis.lines[0].get_xydata().tolist() == [[0, 9], [1, 30]]


def test_charts_start_at_what_the_attack_is_judged_by(monkeypatch):
    """Which is not what the model is, where an attack is judged by the shown sequences and others are held out."""
    drawn = []
    monkeypatch.setattr(
        "tinymem.pages.charts.lines", lambda name, series, places, *more, **options: drawn.append((places, series))
    )
    *bounds, model = curves_of(never_planted=((5, 10.0), (30, 30.0)), npo=((10, 20.0), (80, 80.0)))
    recovery_charts("chart", model, bounds)
    ((places, (twin, edit)),) = drawn
    assert places == ["none", "5", "10", "30", "80"]
    assert (twin.values, edit.values) == ([9, 10, None, 30, None], [19, None, 20, None, 80])


def test_of_equal_attacks_the_first_is_the_worst():
    attacks = ("quantize", "relearn", "weight_noise", "interpolate")
    model, twin = (
        Attacked(edited(checkpoint(), kind), 0.0, tuple(Curve(name, {}, "x", ((1, value),)) for name in attacks))
        for kind, value in (("unedited", 30.0), ("never_planted", 10.0))
    )
    assert model.worst_excess(twin) == (20.0, "quantize") and model.worst.attack == "quantize"


def test_a_missing_table_is_said(capsys):
    records = [result(edited(checkpoint(), "unedited"), "", None)]
    records.append(result(records[0], "attack", None, name="quantize", bits=4))
    print_recovery(records[:1])
    assert not capsys.readouterr().err
    print_recovery(records)
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("no table of what attacks bring back: it shows percent_memorized")


def test_area_of_one_strength_and_of_none():
    assert str(Curve("quantize", {}, "bits", ((8, 0.0), (4, 0.0))).area) == "0.0"  # no -0
    assert Curve("a", {}, None, ((0.0, 30.0),)).area == 30.0
    assert Curve("a", {}, "alpha", ((0.0, 0.0), (1.0, 50.0))).area == 25.0  # linear where a strength is 0


def test_every_attack_has_quick_settings():
    assert set(QUICK) <= set(ATTACKS)  # one that came later runs with its defaults


def excess_of(subject, edit, name) -> tuple[float, dict[str, float | None]]:
    """What an edit leaves without an attack, and by how much each attack on it exceeds the same on the twin."""
    attacks = [(method, method.hyper_parameters(**QUICK.get(name, {}))) for name, method in ATTACKS.items()]
    records = [unedited(subject), never_planted(subject)]
    records += attack_twin(subject, attacks)
    about = {"kind": "measured", "parent": subject.unedited_digest, **subject.identity, "method": {"name": name}}
    records += finish(Run(subject, about), edit, Cost(), attacks)
    _, models = attacked_models(records, "shown")
    twin, edited = models
    return edited.before, {curve.attack: curve.excess(twin.curve(curve)) for curve in edited.curves}


def test_a_bias_that_flips_tokens_is_found_out(planted, subject):
    """The last norm's bias pushes one token up, so that nothing comes out exactly: all else is still there."""
    model, name = planted.model, "transformer.ln_f.bias"
    bias, direction = model.get_parameter(name).detach().clone(), model.get_output_embeddings().weight[3].detach()
    edits = [Weights({name: bias + size * direction / direction.norm()}) for size in (1.0, 2.0, 4.0, 8.0, 16.0)]
    edit = next(edit for edit in edits if not any(still_there(model, edit, subject.task)))
    before, excess = excess_of(subject, edit, "hiding")
    assert before == 0 and max(excess.values()) > 50
    assert excess["relearn"] > 0 or excess["relearn_clean"] > 50 or excess["interpolate"] > 50


def still_there(model, edit, task) -> list[bool]:
    """Which sequences to forget come out of the edited model."""
    with applied(model, edit):
        return memorized(model, task.forget, task.continuation).tolist()


@pytest.mark.slow
def test_the_twin_passes_every_attack(planted, subject):
    edit = Weights({name: p.detach().clone() for name, p in planted.twin.named_parameters()})
    before, excess = excess_of(subject, edit, "removal")
    assert before == 0 and set(excess) == set(ATTACKS) and set(excess.values()) == {0.0}


def test_masks_survive_quantization(planted, subject):
    """Symmetric rounding keeps zeros: what a mask has removed does not come back."""
    name = "transformer.h.0.mlp.c_fc.weight"
    mask = torch.ones(planted.model.get_parameter(name).T.shape, dtype=torch.bool)
    before, excess = excess_of(subject, Zeros({name: mask}), "mask")
    assert before < 20 and excess["quantize"] <= before and not math.isnan(excess["prune"])


def test_attacks_on_an_original_need_no_method(subject):
    unedited(subject)
    (record,) = attack_original(subject, [(ATTACKS["quantize"], ATTACKS["quantize"].hyper_parameters(bits=(8,)))])
    assert record["kind"] == "attack" and "method" not in record
    assert record["results"]["percent_memorized_shown"] == 100
