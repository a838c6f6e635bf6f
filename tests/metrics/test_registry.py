import re
from argparse import Namespace
from pathlib import Path

import pytest

from tinymem import cli
from tinymem.cli.methods import chosen_metrics
from tinymem.errors import UserError
from tinymem.metrics.metric import PLANTED, Metric
from tinymem.metrics.registry import (
    DEFAULTS,
    GROUPS,
    METRICS,
    better_of,
    check_spelling,
    chosen,
    columns,
    describe,
    documented,
    expanded,
    missing,
    summarized,
)  # fmt: skip

PUBLISHED = ["percent_memorized_train", "percent_memorized_shown", "percent_memorized_validation"]
PUBLISHED += ["percent_memorized_held_out", "percent_memorized_test", "percent_memorized_never_planted"]
PUBLISHED += ["percent_clean_recovery", "mean_test_accuracy", "mean_test_accuracy_no_pad", "perplexity"]
PUBLISHED += ["perplexity_batch_mean"]
DRIFT = [f"{name}_{text}" for name in ("kl", "flip_rate", "ndcg") for text in ("retain", "unseen")]
COMPARED = ("train", "shown", "validation", "held_out", "never_planted")
FORWARD = ["percent_extractable", "median_n", "exact_match_share", "extraction_strength", "longest_match"]
FORWARD += ["longest_match_p95"]
WRITTEN = ["percent_near_verbatim", "percent_copied", "levenshtein_similarity", "rouge_l"]
SCORES = ["planted_loss", "zlib_ratio", "min_k", "min_k_plus", "gradient_norm", "loss_over_twin", "loss_distance"]
PLACED = ["auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_plus", "auc_gradient_norm", "auc_twin", "exposure"]
PLACED += ["unlearning_depth"]
FIXED = PUBLISHED + DRIFT
FIXED += [f"{name}_{split}" for name in [*FORWARD, *WRITTEN, "prefix_area", *SCORES] for split in COMPARED]
FIXED += [f"{name}_{split}" for name in PLACED for split in COMPARED[:-1]] + ["neighbour_accuracy"]
VARIANTS = ["percent_extractable_n1000_p90_k10_t70", "percent_memorized_prefix16"]


def own(name: str = "copied", **more) -> Metric:
    return Metric(name, "0 to 1", "twin", PLANTED, ("generation",), "share copied", lambda *_: None, **more)


def test_columns_and_their_order():
    assert [name for name in columns() if name in FIXED] == FIXED  # and those of metrics that came later
    assert columns(headline=True) == [*PUBLISHED[:6], "mean_test_accuracy", "perplexity"]
    present = ["loss_two", "accuracy_two", "seconds", "perplexity", "percent_memorized_dup_100", "accuracy_seven"]
    present += ["percent_memorized_dup_10", "percent_memorized_train"]
    assert columns(reversed(present)) == [
        "percent_memorized_train", "percent_memorized_dup_10", "percent_memorized_dup_100", "perplexity",
        "accuracy_seven", "accuracy_two", "loss_two",
    ]  # fmt: skip
    assert columns(present, detail=False) == ["percent_memorized_train", "perplexity"]


def test_directions_and_units():
    lower = ("percent_memorized_dup_10", "percent_memorized_held_out", "loss_test", "perplexity")
    assert {better_of(name) for name in lower} == {"lower"}
    assert {better_of(name) for name in ("percent_clean_recovery", "accuracy_two", "mean_test_accuracy")} == {"higher"}
    assert describe("percent_memorized_dup_10").meaning.endswith("planted 10 times each")
    assert describe("loss_two").unit == "nats per token" and "test set two" in describe("loss_two").meaning


@pytest.mark.parametrize(
    "name",
    ["accuracy_lost", "perplexity_rise_percent", "percent_memorized_counted", "train_loss", "percent_memorized",
     "percent_zeroed", "seconds", "perplexity_ci95", "accuracy", "percent_extractable_test", "auc_loss_never_planted",
     "percent_extractable_n0_p50_train", "percent_extractable_n9_p50", "percent_memorized_prefix16_test",
     "percent_memorized_prefix16", "perplexity_train"],
)  # fmt: skip
def test_other_columns_are_no_metrics(name):
    assert describe(name) is None and better_of(name) is None


def test_short_names_are_those_of_terminals():
    for column in documented():
        assert list(cli.brief({column.name: 0})) == [column.short]


def test_a_metric_of_ones_own_stands_after_the_others():
    more = [own()]
    assert columns(["copied_train", "perplexity"], more=more) == ["perplexity", "copied_train"]
    assert better_of("copied_train", more) == "twin" and better_of("copied_train") is None
    assert columns(more=more)[-1] == "copied_never_planted"


def test_chosen_by_name():
    assert [metric.name for metric in chosen()] == list(DEFAULTS) and "generation" not in chosen()[0].needs
    extra = own()
    assert chosen(["perplexity", extra, "percent_memorized"]) == [
        METRICS["percent_memorized"], METRICS["perplexity"], extra,
    ]  # fmt: skip
    with pytest.raises(UserError, match="--metrics percent_memorised: no such metric.*percent_memorized, .*loss"):
        chosen(["percent_memorised"])
    for two in (["perplexity", own("perplexity")], [own(), own()]):
        with pytest.raises(UserError, match="two metrics of this name"):
            chosen(two)


@pytest.mark.parametrize("name", VARIANTS)
def test_metrics_with_numbers_in_their_names(name):
    (metric,) = chosen([name])
    assert metric.name == name and chosen([name, metric]) == [metric]  # one and the same
    columns_ = [f"{name}_{split}" for split in COMPARED]
    assert {better_of(column) for column in columns_} == {"twin"} and describe(columns_[1]).meaning.endswith(
        "the method"
    )
    present = [*columns_[::-1], "percent_memorized_train", "seconds", "neighbour_accuracy"]
    assert columns(present) == ["percent_memorized_train", "neighbour_accuracy", *columns_]
    assert list(cli.brief({columns_[0]: 0})) == [describe(columns_[0]).short]
    assert missing(columns_, [name, "perplexity"]) == ["perplexity"] and missing(["perplexity"], [name]) == [name]


@pytest.mark.parametrize("name", ["percent_extractable_n10_p100", "percent_memorized_prefix0"])
def test_numbers_out_of_range(name):
    with pytest.raises(UserError, match=f"--metrics {name}: .*; allowed: ") as caught:
        chosen([name])
    assert "\n" not in str(caught.value)


def test_groups():
    assert GROUPS["published"] == DEFAULTS and GROUPS["all"] == tuple(METRICS)
    costly = {
        "prefix_area",
        *(name for name, metric in METRICS.items() if {"generation", "gradients", "original"} & set(metric.needs)),
    }
    assert costly == {*WRITTEN, "prefix_area", "gradient_norm", "auc_gradient_norm", "unlearning_depth"}
    assert GROUPS["forward"] == tuple(name for name in METRICS if name not in costly)
    assert set(DEFAULTS) <= set(GROUPS["forward"]) and len(DEFAULTS) == 8
    assert [metric.name for metric in chosen(["forward", "rouge_l"])] == [
        name for name in METRICS if name not in costly - {"rouge_l"}
    ]
    assert expanded(["published", "rouge_l"]) == [*DEFAULTS, "rouge_l"]
    arguments = Namespace(metrics=["published", "perplexity", "rouge_l"])
    assert chosen_metrics(arguments) == (*DEFAULTS, "rouge_l")
    with pytest.raises(
        UserError, match="--metrics fast: no such metric; choose from published, forward, attacked, all, percent_"
    ):
        chosen_metrics(Namespace(metrics=["fast"]))


def test_a_line_for_each_metric():
    lines = summarized()
    assert [line.name for line in lines][:3] == [
        "percent_memorized_SPLIT",
        "percent_clean_recovery",
        "mean_test_accuracy",
    ]
    assert len(lines) == len(METRICS) and {"accuracy_NAME", "kl_TEXT", "neighbour_accuracy"} <= {
        line.name for line in lines
    }
    assert next(line for line in lines if line.name == "auc_loss_SPLIT").splits == COMPARED[:-1]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_card(name):
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    cards = [card for card in text.split("\n### ") if f"`{name}`" in card.partition("\n")[0]]
    assert len(cards) == 1, f"docs/metrics.md has no card for {name}: see docs/adding.md"
    assert [part for part in ("**Target.**", "**Pitfalls.**", "**Source.**") if part not in cards[0]] == []


@pytest.mark.parametrize(
    "name",
    [
        "percent_extractable_n10_p0.5_k40_tnan",
        "percent_extractable_n10",
        "percent_extractable_nan_p5",
        "percent_memorized_prefix_8",
    ],
)
def test_a_name_with_a_bad_number_is_told_how_it_is_spelled(name):
    with pytest.raises(
        UserError, match=f"--metrics {re.escape(name)}: must be spelled percent_.* with whole numbers, such as"
    ):
        check_spelling(name)
    for right in (
        "percent_extractable_n10_p50",
        "percent_extractable_never_planted",
        "percent_extractable",
        "own.metric",
    ):
        check_spelling(right)
