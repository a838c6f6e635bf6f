"""The tables of the documentation show what the committed results say: none of them holds old numbers."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from committed import committed


def read(path: str) -> Any:
    return json.loads(committed(path))


def table_after(document: str, head: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    text = committed(document)
    lines = text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def one_line(document: str) -> str:
    return " ".join(committed(document).split())


def percents(values: Sequence[float]) -> list[str]:
    return [f"{value:.1f} %" for value in values]


def test_results_in_the_readme():
    number, text, lm = (read(f"results/{name}/summary.json") for name in ("demo", "demo_text", "demo_lm"))
    rows = {row["method"]: row for row in lm["rows"]}
    states, before, after = ("before", "after"), rows["unedited"], rows["balanced_subnet"]

    def change(first: float, last: float, digits: int = 1, unit: str = " %") -> str:
        return f"{first:.{digits}f}{unit} → {last:.{digits}f}{unit}"

    def of(name: str, digits: int = 1, unit: str = " %") -> str:
        return change(*(number[state][name] for state in states), digits, unit)

    def of_lm(name: str, unit: str = " %") -> str:
        return change(before[name], after[name], 1, unit)

    expected = [
        ["`make demo`", of("percent_memorized_train"), of("percent_memorized_test"), of("perplexity", 2, "")],
        [
            "`make demo-text`",
            change(*(text["percent_memorized"][state] for state in states)),
            "",
            change(*(text["test_perplexity"][state] for state in states), 1, ""),
        ],
        [
            "`make demo-lm`",
            of_lm("percent_memorized_shown"),
            of_lm("percent_memorized_held_out"),
            of_lm("perplexity", ""),
        ],
    ]
    minutes = [f"{summary['seconds_total'] / 60:.0f}" for summary in (number, text, lm)]
    rows = table_after("README.md", "command")
    assert [[command, *cells] for command, _, *cells, _ in rows] == expected
    assert [row[-1] for row in rows] == minutes
    assert sum(row["method"] == "balanced_subnet" for row in lm["rows"]) == 1


def test_demo():
    summary = read("results/demo/summary.json")

    def cells(row: Mapping[str, float]) -> list[str]:
        accuracy, perplexity = (f"{row[name]:.4f}" for name in ("mean_test_accuracy", "perplexity"))
        return [*percents([row["percent_memorized_train"], row["percent_memorized_test"]]), accuracy, perplexity]

    expected = [[when, *cells(summary[when])] for when in ("before", "after")]
    assert table_after("docs/training.md", "`make demo`") == expected
    assert f"\n{summary['seconds_total']:.0f} seconds in all on two CPU cores" in committed("docs/training.md")


def test_demo_text():
    summary, document = read("results/demo_text/summary.json"), committed("docs/training.md")
    assert table_after("docs/training.md", "`make demo-text`") == [
        [when, *percents(by_repeats.values()), f"{summary['test_perplexity'][when]:.1f}"]
        for when, by_repeats in summary["percent_memorized_by_duplication"].items()
    ]
    assert f"\n{summary['seconds_total']:.0f} seconds in all on two CPU cores" in document
    shown = document[document.index("\nthe passage goes on") :].split("```")[0].strip().splitlines()
    for line, (name, text) in zip(shown, list(summary["passage"].items())[1:], strict=True):
        label, _, quoted = line.partition("⏎")
        assert label.strip() == name and text.startswith(f"⏎{quoted}")


def test_demo_lm():
    summary = read("results/demo_lm/summary.json")
    rows = {(row["method"], row["ratio"]): row for row in summary["rows"]}
    names = {"never planted": ("never_planted", None), "planted, unedited": ("unedited", None)}
    lines = table_after("docs/production.md", "`make demo-lm`")
    assert len(lines) > 5
    for name, ratio, shown, held_out, perplexity, seconds in lines:
        row = rows[names.get(name) or (name.strip("`"), float(ratio))]
        assert [shown, held_out] == percents([row["percent_memorized_shown"], row["percent_memorized_held_out"]])
        assert perplexity == f"{row['perplexity']:.1f}"
        assert name in names or seconds == f"{row['seconds']:.0f}"
    text, planting, settings = one_line("docs/production.md"), summary["planting"], summary["settings"]
    assert f"The whole takes {summary['seconds_total'] / 60:.0f} minutes" in text
    assert f"{planting['seconds'] / 60:.0f} of them to plant" in text
    passages = round(planting["unedited"] / 100 * settings["data"]["plant_sequences"])
    assert f"({passages} of {settings['data']['plant_sequences']})" in text
    for document in ("docs/production.md", "docs/methods.md"):
        assert f" {summary['left_out']['zero_out']:.0f} hours" in one_line(document)


SPEED = {
    "training step, 2 layers, bfloat16": "training_2_layers_bfloat16",
    "training step, 2 layers, float32": "training_2_layers_float32",
    "training step, a vocabulary of 50,257": "training_text",
    "are 1000 sequences memorized?": "memorization",
    "Zero-Out": "zero_out",
    "Integrated Gradients": "integrated_gradients",
    "Second-Order Unlearning, 512 gradients": "obs",
    "BalancedSubnet": "balanced_subnet",
    "building 32,000 sequences": "building_data",
}


def test_speed():
    rows = {row["name"]: row for row in read("benchmarks/results.json")["rows"]}
    lines = table_after("docs/speed.md", "| recipe / ours")
    assert len(lines) == len(SPEED)
    for what, *figures in lines:
        row = rows[SPEED[what]]
        for figure, name in zip(figures, ("ratio", "ratio_same_allocator"), strict=False):
            assert figure == (f"{row[name]:.0f}x" if row[name] >= 10 else f"{row[name]:.1f}x")
        no_limit = row["name"] in ("obs", "building_data")  # unknown, and far away
        assert figures[2] == ("" if no_limit else f"{100 * row['share_of_limit']:.0f} %")
    steps = [rows[SPEED[what]] for what, *_ in lines[:3]]
    stock = [f"{row['stock_seconds'] / row['ours_seconds']:.1f}x" for row in steps]
    sentence = f"Against stock transformers the first three are {stock[0]}, {stock[1]} and {stock[2]}"
    assert sentence in committed("docs/speed.md")


def test_comparison():
    seconds = read("results/compare_mitigations/summary.json")["seconds_total"]
    assert f"in {seconds / 60:.0f} minutes on one core" in one_line("docs/methods.md")


def test_what_regularizers_cost():
    rows = read("benchmarks/regularizer_cost.json")["rows"]
    text = committed("docs/methods.md")
    assert f"at most {max(row['added_percent'] for row in rows):.1f} %" in " ".join(text.split())
    for row in rows:
        if row["dtype"] == "bfloat16" and row["regularizer"] != "none":
            card = re.split(r"\n#{1,3} ", text.partition(f"\n### {row['regularizer']}\n")[2])[0]
            assert f"{row['added_percent']:.1f} % of a bfloat16 step" in " ".join(card.split())
