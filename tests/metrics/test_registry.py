from pathlib import Path

import pytest

from tinymem import cli
from tinymem.errors import UserError
from tinymem.metrics.metric import PLANTED, Metric
from tinymem.metrics.registry import DEFAULTS, METRICS, better_of, chosen, columns, describe, documented

FIXED = ["percent_memorized_train", "percent_memorized_shown", "percent_memorized_validation"]
FIXED += ["percent_memorized_held_out", "percent_memorized_test", "percent_memorized_never_planted"]
FIXED += ["percent_clean_recovery", "mean_test_accuracy", "mean_test_accuracy_no_pad", "perplexity"]
FIXED += ["perplexity_batch_mean"]
FIXED += [f"{name}_{text}" for name in ("kl", "flip_rate", "ndcg") for text in ("retain", "unseen")]


def own(name: str = "copied", **more) -> Metric:
    return Metric(name, "0 to 1", "twin", PLANTED, ("generation",), "share copied", lambda *_: None, **more)


def test_columns_and_their_order():
    assert columns() == FIXED
    assert columns(headline=True) == [*FIXED[:6], "mean_test_accuracy", "perplexity"]
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
    ["accuracy_lost", "perplexity_rise_percent", "percent_memorized_as_published", "train_loss", "percent_memorized",
     "percent_zeroed", "seconds", "perplexity_ci95", "accuracy"],
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


def test_the_table_of_columns_says_what_the_registry_says():
    text = (Path(__file__).parents[2] / "results" / "README.md").read_text()
    for column in documented():
        assert f"| `{column.name}` | {column.meaning} | {column.unit} | {column.better} |" in text
