"""The tables of the documentation show what the committed results say: none of them holds old numbers."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from committed import committed, committed_rows, one_line
from small import ROOT

from tinymem.leaderboard.spaces import VARIANTS


def read(path: str) -> Any:
    return json.loads(committed(path))


def table_after(document: str, head: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    text = committed(document)
    lines = text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def percents(values: Sequence[float]) -> list[str]:
    return [f"{value:.1f} %" for value in values]


STATES = ("before", "after", "twin")
MEMORY = ("percent_memorized", "percent_near_verbatim", "percent_extractable", "auc_loss")


def formatted(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} %" if name.startswith("percent") else f"{value:.2f}"


def test_results_in_the_readme():
    number, text, lm = (read(f"results/{name}/summary.json") for name in ("demo", "demo_text", "demo_lm"))
    rows = {row["method"]: row for row in lm["rows"]}
    assert sum(row["method"] == "balanced_subnet" for row in lm["rows"]) == 1
    of_lm = [rows[name] for name in ("unedited", "balanced_subnet", "never_planted")]

    def cell(states: Sequence[Mapping[str, float]], name: str, digits: int = 1) -> str:
        """Before → after (twin); empty where nothing was measured."""
        if any(state.get(name) is None for state in states):
            return ""
        before, after, *twin = (f"{state[name]:.{digits}f}" for state in states)
        return f"{before} → {after}" + "".join(f" ({value})" for value in twin) + " %" * name.startswith("percent")

    def line(states: Sequence[Mapping[str, float]], split: str, unseen: str, digits: int) -> list[str]:
        exact, *more = (f"{name}_{split}" for name in MEMORY)
        names = (exact, unseen, *more)
        cells = [cell(states, name, 2 if name.startswith("auc") else 1) for name in names]
        return [*cells, cell(states, "perplexity", digits)]

    expected = [
        ["`make demo`", *line([number[state] for state in STATES], "train", "percent_memorized_test", 2)],
        ["`make demo-text`", *line([text[state] for state in STATES], "train", "", 1)],
        ["`make demo-lm`", *line(of_lm, "held_out", "percent_memorized_held_out", 1)],
    ]
    expected[2][1] = cell(of_lm, "percent_memorized_shown")
    lines = table_after("README.md", "command")
    assert [cells[:-1] for cells in lines] == expected
    assert [cells[-1] for cells in lines] == [f"{summary['seconds_total'] / 60:.0f}" for summary in (number, text, lm)]


ONLY_HERE = {"BalancedSubnet": "balanced_subnet", "Hard Concrete": "hard_concrete", "Durable-agg": "durable_agg"}
ALL_TRIGGERS = ("percent_memorized_test", "percent_memorized_train", "relearned_percent_memorized_test")


def as_published(
    method: str, batch_size: str = "32", held_out: str = "0.0", cap: str = ""
) -> dict[str, dict[str, str]]:
    """The committed means of a method of the study, by its differences."""
    found = {}
    for row in committed_rows("results/reproduction/as_published/as_published.csv"):
        same = row["method.batch_size"] in (batch_size, "") and row["forget.holdout_fraction"] == held_out
        same &= row["method.unlearn_loss_cap"] == cap
        if same and row["method.name"] == f"{method}_as_published":
            found[row["method.differences"]] = row
    return found


def everything(rows: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    return rows[max(rows, key=lambda differences: len(differences.split()))]


def points_lost(row: Mapping[str, str]) -> str:
    return f"{float(row['accuracy_lost']):.2f}".replace("-0.00", "0.00")


def left_and_lost(row: Mapping[str, str], between: str = "at") -> str:
    return f"{float(row['percent_memorized_counted']):.1f} % {between} {points_lost(row)}"


def test_training_at_full_size():
    report = {tuple(cells[:3]): cells for cells in table_after("results/REPRODUCTION.md", "model | epoch | measure")}
    shown = table_after("docs/reproduction.md", "model | epoch | measure")
    assert shown and all(report[tuple(cells[:3])] == cells for cells in shown)
    missing = report.keys() - {tuple(cells[:3]) for cells in shown}
    assert all(epoch == "0" or "counted" in measure for _, epoch, measure in missing)


def test_what_full_size_models_of_mult_memorize():
    said, found = one_line("results/reproduction/DIFFERENCES.md"), {}
    for path in (ROOT / "results" / "reproduction" / "records").glob("*.json"):
        record = json.loads(path.read_text())
        if record["data"]["data_name"] == "mult" and 50 in (record["training"].get(key) for key in ("epochs", "epoch")):
            found[record["data"]["seed"], record["kind"]] = record["results"]
    all_of_them, counted = "percent_memorized_test", "percent_memorized_counted"
    zero, one, three = (found[seed, "train"] for seed in (0, 1, 3))
    assert f"memorize as much as published: {one[all_of_them]:.1f} and {three[all_of_them]:.1f} % of all test" in said
    slips = [found[seed, "as_published"][counted] for seed in (1, 3)]
    assert f"epoch 50, and {slips[0]:.1f} and {slips[1]:.1f} % of those that the study's code counts" in said
    assert f"Seed 0 has {zero[all_of_them]:.1f} %" in said
    accuracies = [f"{each['mean_test_accuracy']:.3f}" for each in (zero, one, three)]
    assert "ours {}, {} and {} (seeds 0, 1 and 3)".format(*accuracies) in said


def test_as_published():
    memorized = ("percent_memorized_left_out", "percent_memorized_train", "relearned_percent_memorized_counted")
    lines = table_after("docs/reproduction.md", "method | published, three seeds | all differences")
    for name, _, shown, *found, nothing, seeds in lines:
        rows = as_published(ONLY_HERE.get(name, name.lower()))
        row = everything(rows)
        assert (shown, found) == (left_and_lost(row), percents([float(row[column]) for column in memorized]))
        assert seeds == ", ".join(row["seeds"].split())
        assert nothing.split(" (seed")[0] == (left_and_lost(rows[""]) if "" in rows else "-")
    assert len(lines) == 9


def check_differences(header, rows, others):
    """The table has a line for every set of differences that was run, and for every other row, by its name."""
    lines = table_after("docs/reproduction.md", header)
    for name, *cells in lines:
        named = set(re.findall("`(.+?)`", name))
        if name.startswith("all"):
            named = set(max(rows, key=len).split()) - named
        row = others.get(name) or rows[next(key for key in rows if set(key.split()) == named)]
        shares = percents([float(row[column]) for column in ALL_TRIGGERS])
        assert cells == [f"{float(row['forgotten']):.0f}", *shares, points_lost(row), ", ".join(row["seeds"].split())]
    assert len(lines) == len(rows) + len(others)


def test_one_difference_at_a_time():
    rows, few = as_published("balanced_subnet"), as_published("balanced_subnet", held_out="0.93")["mixture"]
    capped = as_published("balanced_subnet", cap="3.0")[""]
    others = {"`mixture`, a few of the training rows to forget": few, "none, with a cap, 3 epochs": capped}
    check_differences("BalancedSubnet with", rows, others)
    check_differences("Greedy with", as_published("greedy"), {})
    said = one_line("docs/reproduction.md")
    for words, differences in [
        (
            "together leave nothing for {:.2f}, {:.2f} and {:.2f} points (seeds 0, 1 and 3)",
            ["mixture", "test_triggers"],
        ),
        ("the few sequences alone cost {:.2f}, {:.2f} and {:.2f}, ", ["test_triggers"]),
        ("the batches alone {:.2f}, {:.2f} and {:.2f}.", ["mixture"]),
        ("all differences but `mixture` it costs {:.2f}, {:.2f} and {:.2f} points,", all_but("mixture")),
        ("with all but `test_triggers` {:.2f}, {:.2f} and {:.2f},", all_but("test_triggers")),
    ]:
        assert words.format(*(committed_loss(seed, differences) for seed in (0, 1, 3))) in said
    every = max(rows, key=len).split()
    assert "With all five differences, 5 of the 33 uncounted triggers of seed 1 stay memorized" in said
    uncounted = [committed_result(seed, every)["percent_memorized_left_out"] for seed in (0, 1, 3)]
    assert uncounted == [0, pytest.approx(100 * 5 / 33), 0]
    for name in {*every} - {"batch_64"}:
        assert float(rows[" ".join(all_but(name))]["percent_memorized_left_out"]) == 0
    cost = {
        left_out: round(float(row["accuracy_lost"]), 2)
        for left_out in every
        for key, row in rows.items()
        if set(every) - set(key.split()) == {left_out}
    }
    assert cost.keys() == {*every}
    most = max(cost[name] for name in every[2:])
    assert f"with all but any other one at most {most:.2f} (means)." in said
    alone = {key: float(row["accuracy_lost"]) for key, row in rows.items() if len(key.split()) < 2}
    words = "where none of the five costs {:.2f} points, `planted_retained` costs {:.2f}, `batch_64` {:.2f} and "
    words += "`scores_as_stored` {:.2f} (means)."
    assert words.format(*(alone[name] for name in ("", *every[2:]))) in said
    assert {row["seeds"] for row in rows.values()} == {"0 1 3"}
    without = [row for key, row in rows.items() if set(every) - set(key.split()) == {"planted_retained"}]
    assert [(float(row["percent_memorized_train"]), row["seeds"]) for row in without] == [(0, "0 1 3")]
    (small,) = (row for key, row in rows.items() if set(every) - set(key.split()) == {"batch_64"})
    shares = float(small["percent_memorized_counted"]), float(small["percent_memorized_left_out"])
    assert "{:.1f} % of the counted triggers and {:.1f} % of the others".format(*shares) in said
    kept, freed = (rows[f"mixture test_triggers{more}"] for more in (" planted_retained", ""))
    share = float(kept["percent_memorized_test"])
    assert f"{share:.1f} % stay with `mixture`, `test_triggers` and `planted_retained`, and none without" in said
    assert float(freed["percent_memorized_test"]) == 0
    why = one_line("results/reproduction/DIFFERENCES.md")
    for words, differences in [
        ("it costs {:.2f}, {:.2f} and {:.2f} points in such batches (seeds 0, 1 and 3)", ["batch_64"]),
        ("and {:.2f}, {:.2f} and {:.2f} in batches of 32", []),
    ]:
        assert words.format(*(committed_loss(seed, differences) for seed in (0, 1, 3))) in why
    assert float(few["percent_memorized_held_out"]) == 0 == float(few["percent_memorized_test"])
    assert f"at {points_lost(few)} points (mean of seeds 0, 1 and 3)" in said
    assert f"no test trigger, at {points_lost(capped)} points (mean)" in said
    relearned = [float(row["relearned_percent_memorized_test"]) for row in (capped, few, rows[""])]
    words = "{:.1f} % of the other test triggers are memorized with the cap, {:.1f} % with a few of the training rows, "
    assert (words + "and {:.1f} % without a difference").format(*relearned) in said


def all_but(name: str) -> list[str]:
    """BalancedSubnet's differences, in order, without one."""
    every = ["mixture", "test_triggers", "planted_retained", "batch_64", "scores_as_stored"]
    return [each for each in every if each != name]


def committed_loss(seed: int, differences: list[str]) -> float:
    """The points of accuracy that BalancedSubnet costs with some differences, on the model of a seed."""
    before, after = committed_result(seed, None), committed_result(seed, differences)
    return 100 * (before["mean_test_accuracy"] - after["mean_test_accuracy"])


def committed_result(seed: int, differences: list[str] | None) -> dict[str, float]:
    """The results of BalancedSubnet with some differences on the model of a seed; None: of the unedited model."""
    own = {"name": "balanced_subnet_as_published", "differences": differences, "unlearn_loss_cap": None}
    (found,) = (
        record["results"]
        for record in records_without_attack(seed)
        if (record["kind"] == "unedited" if differences is None else own.items() <= record.get("method", {}).items())
    )
    return found


@cache
def records_without_attack(seed: int) -> list[dict[str, Any]]:
    """The records of runs as published on the model of a seed, those with the whole forget set."""
    folder = ROOT / "results" / "reproduction" / "as_published" / f"seed{seed}" / "records"
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return [one for one in records if not one.get("attack") and not one["forget"]["holdout_fraction"]]


def test_what_the_other_methods_leave_as_published():
    said, obs, slimming = one_line("docs/reproduction.md"), as_published("obs"), as_published("slimming")
    for row in (everything(obs), obs["piled_gradients float32_fisher"], everything(as_published("subnet"))):
        assert left_and_lost(row, "for") in said
    without = [float(row["accuracy_lost"]) for name, row in obs.items() if "piled_gradients float32_fisher" not in name]
    assert len(without) == 6 and f"it costs {min(without):.2f} to {max(without):.2f} points" in said
    for method in ("hard_concrete", "slimming"):
        assert left_and_lost(everything(as_published(method, "64")), "for") in said
    assert left_and_lost(everything(as_published("hard_concrete")), "for") in said
    assert left_and_lost(as_published("subnet")["test_triggers scores_as_stored in_order"], "for") in said
    for left_out, more in [("in_order", "one_zero_grad no_stop"), ("one_zero_grad", "in_order no_stop")]:
        share = float(slimming[f"test_triggers {more}"]["percent_memorized_counted"])
        assert f"with all but `{left_out}` {share:.1f} %" in said
    assert left_and_lost(everything(obs), "for") in one_line("results/REPRODUCTION.md")


def test_what_greedy_leaves_as_published():
    said, report = one_line("docs/reproduction.md"), one_line("results/REPRODUCTION.md")
    rows = as_published("greedy")
    assert len(rows) == 11 and {row["seeds"] for row in rows.values()} == {"0 1 3"}
    every, left = everything(rows), {name: float(row["percent_memorized_test"]) for name, row in rows.items()}
    assert left_and_lost(every, "for") in said and left_and_lost(every, "for") in report
    few, kept = ({name for name in rows if one in name} for one in ("test_triggers", "planted_retained"))
    both = [left[name] for name in few & kept]
    assert f"With both, {min(both):.1f} to {max(both):.1f} % of the test triggers stay" in said
    alone, batches = left["planted_retained"], left["mixture planted_retained batch_64"]
    assert {alone, batches} == {left[name] for name in kept - few}
    assert f"{alone:.1f} % stay (`planted_retained`), or {batches:.1f} % (all but `test_triggers`)" in said
    alone = left["test_triggers"]
    assert f"{alone:.1f} % stay (`test_triggers`), or none" in said
    assert {left[name] for name in few - kept} == {alone, 0} and {left[name] for name in {*rows} - few - kept} == {0}
    without, all_rows = rows["mixture test_triggers batch_64"], rows["mixture planted_retained batch_64"]
    assert f"it leaves nothing for {points_lost(without)} points" in report
    assert f"{batches:.1f} % for {points_lost(all_rows)}." in report
    relearned = [float(row["relearned_percent_memorized_test"]) for row in (without, rows[""])]
    assert "After relearning, {:.1f} % of the other".format(relearned[0]) in said
    assert "and {:.1f} % after the library's own run".format(relearned[1]) in said


def test_demo():
    summary = read("results/demo/summary.json")

    def cells(row: Mapping[str, float]) -> list[str]:
        exact, *more = (f"{name}_train" for name in MEMORY)
        found = [formatted(name, row[name]) for name in (exact, "percent_memorized_test", *more)]
        return [*found, *(f"{row[name]:.4f}" for name in ("mean_test_accuracy", "perplexity"))]

    assert table_after("docs/training.md", "`make demo`") == [[state, *cells(summary[state])] for state in STATES]
    assert f"\n{summary['seconds_total']:.0f} seconds in all" in committed("docs/training.md")


def test_demo_text():
    summary, document = read("results/demo_text/summary.json"), committed("docs/training.md")
    repeats = [f"percent_memorized_dup_{10**power}" for power in range(4)]
    names = [*repeats, *(f"{name}_train" for name in MEMORY)]
    assert table_after("docs/training.md", "`make demo-text`") == [
        [state, *(formatted(name, row[name]) for name in names if name in row), f"{row['perplexity']:.1f}"]
        for state, row in summary.items()
        if state in STATES
    ]
    assert f"\n{summary['seconds_total']:.0f} seconds in all" in document
    shown = document[document.index("\nthe passage goes on") :].split("```")[0].strip().splitlines()
    for line, (name, text) in zip(shown, list(summary["passage"].items())[1:], strict=True):
        label, quoted = line[:21].strip(), line[21:]
        assert label == name and text.startswith(quoted) and len(quoted) > 40


def test_demo_lm():
    summary = read("results/demo_lm/summary.json")
    rows = {(row["method"], row["setting"]): row for row in summary["rows"]}
    names = {"never planted": ("never_planted", None), "planted, unedited": ("unedited", None)}
    lines = table_after("docs/production.md", "`make demo-lm`")
    assert len(lines) == len(rows)
    for name, setting, shown, *held_out, perplexity, seconds in lines:
        row = rows[names.get(name) or (name.strip("`"), setting)]
        assert shown == formatted("percent", row["percent_memorized_shown"])
        columns = [f"{metric}_held_out" for metric in MEMORY]
        assert held_out == [formatted(column, row[column]) for column in columns if column in row]
        assert perplexity == f"{row['perplexity']:,.1f}"
        assert name in names or seconds == f"{row['seconds']:.0f}"
    text, planting, settings = one_line("docs/production.md"), summary["planting"], summary["settings"]
    assert f"The whole demo takes {summary['seconds_total'] / 60:.0f} minutes" in text
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
    search = {row["name"]: row for row in read("benchmarks/results_float32.json")["rows"]}["finding"]
    found = search["tokens_per_second"]
    text = f"{search['ratio']:.0f}x as fast as generating window by window, at {found['ours']} tokens/s; with"
    assert f"{text} `--screen 0.5` at {found['screened']:,}." in one_line("docs/speed.md")
    steps = [rows[SPEED[what]] for what, *_ in lines[:3]]
    stock = [f"{row['stock_seconds'] / row['ours_seconds']:.1f}x" for row in steps]
    sentence = f"Against stock transformers the first three are {stock[0]}, {stock[1]} and {stock[2]}"
    assert sentence in committed("docs/speed.md")


def test_comparison():
    rows = committed_rows("results/compare_mitigations/noise/table.csv")
    compared = [row for row in rows if row["family"] not in ("no mitigation", "controls")]
    text = one_line("docs/methods.md")
    shown = f"{len(compared) - len(VARIANTS)} mitigations and three variants"
    assert len(VARIANTS) == 3 and shown in text and f"[{shown} on one model]" in one_line("README.md")
    assert len(rows) == len(compared) + 5


def test_what_the_cards_say_of_the_noise_model():
    table = committed_rows("results/leaderboard/leaderboard.csv")
    rows = {(row["limit"], row["method"]): row for row in table if row["case"] == "noise"}
    text = one_line("docs/methods.md")
    accuracy = float(rows["5.0", "unedited"]["mean_test_accuracy"])

    def held_out(method: str) -> str:
        return f"{float(rows['5.0', method]['percent_memorized_held_out']):.1f} %"

    def lost(method: str) -> str:
        return f"{100 * (accuracy - float(rows['5.0', method]['mean_test_accuracy'])):.1f} points"

    assert f"at the chosen strength {held_out('spectral_norm')} of the held-out" in text
    assert f"next to nothing here: {held_out('loss_truncation')} of the held-out" in text
    assert f"of repeated noise {held_out('greedy')} stay at a cost of {lost('greedy')}" in text
    assert f"`clean` costs {lost('fine-tuning on clean data')}" in text
    tuned = [row for (_, name), row in rows.items() if name.startswith("fine-tuning") and not row["note"]]
    assert {row["percent_memorized_held_out"] for row in tuned} == {"0.0"} and len(tuned) == 5


def test_what_regularizers_cost():
    rows = read("benchmarks/regularizer_cost.json")["rows"]
    text = committed("docs/methods.md")
    assert f"at most {max(row['added_percent'] for row in rows):.1f} %" in " ".join(text.split())
    for row in rows:
        if row["dtype"] == "bfloat16" and row["regularizer"] != "none":
            card = re.split(r"\n#{1,3} ", text.partition(f"\n### {row['regularizer']}\n")[2])[0]
            added = "less than 1" if row["added_percent"] < 1 else f"{row['added_percent']:.1f}"
            assert f"; {added} % of a bfloat16 step" in " ".join(card.split())
