"""The README's tables of demos and speed show what the committed results say: none of them holds old numbers.

What counts is what git holds or is about to: a demo or a benchmark that was run here has other results, rightly.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from small import ROOT


def committed(path: str) -> str:
    """What git's index holds, or the file itself where this is no checkout."""
    found = subprocess.run(["git", "show", f":{path}"], cwd=ROOT, capture_output=True)
    return (ROOT / path).read_text(encoding="utf-8") if found.returncode else found.stdout.decode()


README = committed("README.md")


def read(path: str) -> Any:
    return json.loads(committed(path))


def table_after(head: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    lines = README[README.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def percents(values: Sequence[float]) -> list[str]:
    return [f"{value:.1f} %" for value in values]


def test_demo():
    summary = read("results/demo/summary.json")

    def cells(row: Mapping[str, float]) -> list[str]:
        accuracy, perplexity = (f"{row[name]:.4f}" for name in ("mean_test_accuracy", "perplexity"))
        return [*percents([row["percent_memorized_train"], row["percent_memorized_test"]]), accuracy, perplexity]

    assert table_after("`make demo`") == [[when, *cells(summary[when])] for when in ("before", "after")]
    assert f"\n{summary['seconds_total']:.0f} seconds in all on two CPU cores" in README


def test_demo_text():
    summary = read("results/demo_text/summary.json")
    assert table_after("`make demo-text`") == [
        [when, *percents(by_repeats.values()), f"{summary['test_perplexity'][when]:.1f}"]
        for when, by_repeats in summary["percent_memorized_by_duplication"].items()
    ]
    assert f"\n{summary['seconds_total']:.0f} seconds in all on two CPU cores" in README
    shown = README[README.index("\nthe passage goes on") :].split("```")[0].strip().splitlines()
    for line, (name, text) in zip(shown, list(summary["passage"].items())[1:], strict=True):
        label, _, quoted = line.partition("⏎")
        assert label.strip() == name and text.startswith(f"⏎{quoted}")


def test_demo_lm():
    summary = read("results/demo_lm/summary.json")
    rows = {(row["method"], row["ratio"]): row for row in summary["rows"]}
    names = {"never planted": ("never_planted", None), "planted, unedited": ("unedited", None)}
    lines = table_after("`make demo-lm`")
    assert len(lines) > 5
    for name, ratio, shown, held_out, perplexity, seconds in lines:
        row = rows[names.get(name) or (name.strip("`"), float(ratio))]
        assert [shown, held_out] == percents([row["percent_memorized_shown"], row["percent_memorized_held_out"]])
        assert perplexity == f"{row['perplexity']:.1f}"
        assert name in names or seconds == f"{row['seconds']:.0f}"
    assert f"The whole takes {summary['seconds_total'] / 60:.0f} minutes" in README.replace("\n", " ")


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
    lines = table_after("| recipe / ours")
    assert len(lines) == len(SPEED)
    for what, *figures in lines:
        row = rows[SPEED[what]]
        for figure, name in zip(figures, ("ratio", "ratio_same_allocator"), strict=False):
            assert figure == (f"{row[name]:.0f}x" if row[name] >= 10 else f"{row[name]:.1f}x")
        no_limit = row["name"] in ("obs", "building_data")  # unknown, and far away
        assert figures[2] == ("" if no_limit else f"{100 * row['share_of_limit']:.0f} %")
    steps = [rows[SPEED[what]] for what, *_ in lines[:3]]
    stock = [f"{row['stock_seconds'] / row['ours_seconds']:.1f}x" for row in steps]
    assert f"Against stock transformers the first three are {stock[0]}, {stock[1]} and {stock[2]}" in README


def test_comparison():
    seconds = read("results/compare_mitigations/summary.json")["seconds_total"]
    assert f"in {seconds / 60:.0f} minutes on one core" in README.replace("\n", " ")
