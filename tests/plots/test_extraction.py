"""(n, p) curves from saved values, and the twin in the figure of memorization against quality."""

import math

import pytest
import torch
from handmade import checkpoint, edited, outcome

from tinymem import plots
from tinymem.plots.extraction import SAMPLES, extraction_curves
from tinymem.records.cost import Cost
from tinymem.records.record import write_record
from tinymem.records.table import flat_row

LOG_P = torch.tensor([math.log(0.6), math.log(0.01), -math.inf, 0.0])  # n of 1, 69, never, 1
WEIGHTS = torch.tensor([1.0, 1.0, 1.0, 0.0])  # the last row has no value


def written(folder, identity, values) -> dict:
    write_record(folder, identity, outcome(9.0), Cost(1.0, 1.0), "cpu", values=values)
    return identity


def values(split: str, log_p=LOG_P, weights=WEIGHTS) -> dict:
    return {f"percent_extractable_{split}": log_p, f"percent_extractable_{split}.weights": weights}


def runs(folder, *kinds_and_values) -> list[dict]:
    """One record for each (kind or method, values)."""
    made = []
    for name, tensors in kinds_and_values:
        of_model = name in ("unedited", "never_planted")
        identity = {**checkpoint(), "kind": name} if of_model else edited(checkpoint(), name)
        made.append(written(folder, identity, tensors))
    return made


def test_the_share_at_each_n_by_hand(tmp_path):
    records = runs(tmp_path, ("unedited", values("held_out")))
    split, (curve,) = extraction_curves(tmp_path, records)
    assert split == "held_out" and curve.method == "unedited"
    assert (SAMPLES[0], SAMPLES[-1]) == (1, 10**6)
    # 1 - 0.99^n reaches 0.5 at n = 69; the row that never comes out counts, the one without a value does not.
    assert curve.shares == [pytest.approx(1 / 3 if n < 69 else 2 / 3) for n in SAMPLES]


def test_shown_sequences_where_none_is_held_out_and_no_figure_without_values(tmp_path):
    none = values("held_out", torch.zeros(0), torch.zeros(0))
    records = runs(tmp_path / "a", ("unedited", {**values("shown"), **none}))
    assert extraction_curves(tmp_path / "a", records)[0] == "shown"
    records = runs(tmp_path / "b", ("unedited", {"percent_memorized_shown": torch.ones(3)}))
    assert plots.plot_extraction(tmp_path / "b", records, tmp_path / "b" / "extraction") == []
    assert not (tmp_path / "b" / "extraction.png").exists()


def test_every_run_has_a_line_and_attacks_have_none(tmp_path):
    same = values("held_out")
    records = runs(tmp_path, ("never_planted", same), ("unedited", same), ("durable", same))
    attack = {**records[-1], "kind": "attack", "attack": {"name": "quantize", "bits": 4}}
    records.append(written(tmp_path, attack, same))
    figure = plots.draw_extraction(*extraction_curves(tmp_path, records))
    (axis,) = figure.axes
    assert [line.get_label().split(",")[0] for line in axis.get_lines()] == ["never planted", "unedited", "durable"]
    assert axis.get_xscale() == "log" and "held-out" in axis.get_ylabel()
    files = plots.plot_extraction(tmp_path, records, tmp_path / "extraction")
    assert [path.suffix for path in files] == [".png", ".pdf"] and all(path.stat().st_size > 3000 for path in files)


def rows(twin_memorized: float) -> list[dict]:
    def row(identity, memorized, accuracy):
        head = {**identity, "results": outcome(memorized, accuracy), "cost": {}, "environment": {}}
        return flat_row(head)

    made = [row({**checkpoint(), "kind": "never_planted"}, twin_memorized, 0.95)]
    return made + [row({**checkpoint(), "kind": "unedited"}, 80.0, 0.9), row(edited(checkpoint(), "obs"), 2.0, 0.8)]


def regions(axis) -> list:
    return [patch for patch in axis.patches if patch.get_label() == "over-forgetting"]


def test_what_is_below_the_twin_is_shaded_and_the_twin_is_no_rival():
    (axis,) = plots.draw_unlearning(rows(5.0)).axes
    (region,) = regions(axis)
    assert region.get_x() + region.get_width() == 5.0 and axis.get_xlim()[0] <= 0
    assert {group.get_label() for group in axis.collections} == {"never planted", "unedited", "obs"}
    front = next(line for line in axis.get_lines() if line.get_label() == "Pareto front")
    assert [5.0, 0.95] not in front.get_xydata().tolist() and len(front.get_xydata()) == 2


def test_nothing_is_below_a_twin_that_holds_nothing():
    (axis,) = plots.draw_unlearning(rows(0.0)).axes
    assert not regions(axis) and any(list(line.get_xdata()) == [0.0, 0.0] for line in axis.get_lines())
