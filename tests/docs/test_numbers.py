"""The tables of the documentation show what the committed results say: none of them holds old numbers."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from committed import committed, committed_rows, worst_excess


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


def test_leaderboard_in_the_readme():
    table = committed_rows("results/leaderboard/leaderboard.csv")
    rows = {row["method"]: row for row in table if (row["case"], row["limit"]) == ("noise", "1.0")}
    ran = [row for row in rows.values() if row["group"] != "anchor" and row["note"] != "not run"]
    assert f"the small noise model with {len(ran)} mitigations and the anchors" in one_line("docs/leaderboard.md")
    npo, kfade, subnet = (f"{float(rows[name]['score']):.2f}" for name in ("npo", "kfade", "balanced_subnet"))
    assert f"NPO reaches {npo}, K-FADE {kfade}, BalancedSubnet {subnet} within a point of accuracy" in one_line(
        "README.md"
    )


def test_what_the_leaderboard_says_of_noise():
    table = committed_rows("results/leaderboard/leaderboard.csv")
    board = {(row["limit"], row["method"]): row for row in table if row["case"] == "noise"}
    said = one_line("docs/leaderboard.md")

    def score(method: str, limit: str = "1.0") -> str:
        return f"{float(board[limit, method]['score']):.2f}"

    def interval(method: str, limit: str = "1.0") -> str:
        return "{:.2f} to {:.2f}".format(*(float(board[limit, method][f"score_{end}"]) for end in ("low", "high")))

    def left(method: str, limit: str = "1.0", split: str = "held_out") -> str:
        return f"{float(board[limit, method][f'percent_memorized_{split}']):.1f}"

    def back(method: str) -> str:
        return f"{worst_excess(board['1.0', method]):.0f}"

    both, extra = "fine-tuning on both data", "fine-tuning on extra data"
    subnet, dropout, masked = "balanced_subnet", "example_tied_dropout", "npo on durable's weights"
    assert f"score {score(both)} ({interval(both)}), none of the held-out" in said and left(both) == "0.0"
    assert f"On extra data alone: {score(extra)}." in said
    assert f"**NPO** ({score('npo')}, {interval('npo')}) and **DPO** ({score('dpo')}, {interval('dpo')}) lead" in said
    assert f"{left('npo')} and {left('dpo')} % exact" in said
    scratch = ("goldfish", "memorization_sinks")
    assert "reaches {} and **memorization sinks** {}; they leave {} and {} % exact".format(*map(score, scratch), *map(left, scratch)) in said  # fmt: skip
    assert {score(name) for name in ("spectral_norm", "loss_truncation", "l1")} == {"0.02"}
    assert f"it reaches {score(dropout, '5.0')} ({interval(dropout, '5.0')}), not to be told from DPO ({score('dpo', '5.0')})" in said  # fmt: skip
    assert not board["1.0", dropout]["score"] and f"it leaves {left(dropout, '5.0')} % exact" in said
    assert (
        f"**RepSelect** ({score('repselect')}), **PDU** ({score('pdu')}), **gradient difference** and **SimNPO**"
        in said
    )
    assert f"(both {score('simnpo')})" in said and score("simnpo") == score("gradient_difference")
    assert f"it falls from {score('npo')} to {score(masked)}" in said
    assert f"leaves {left(subnet)} % within 1 point of accuracy and {left(subnet, '5.0')} % within 5" in said
    assert f"scores {score(subnet)} and {score(subnet, '5.0')}." in said
    term = "balanced_subnet, NPO term"
    assert f"on the continuations alone, gives {score(term)} and {score(term, '5.0')}." in said
    curved = ("kfac", "kfade", "svd")
    assert "**K-FAC** {}, **K-FADE** {}, **SVD** {} within 1 point".format(*map(score, curved)) in said
    assert "within 5 points {}, {} and {}".format(*(score(name, "5.0") for name in curved)) in said
    assert f"leaves {left('kfac')} % within 1 point" in said and 2 * float(left("kfac")) < float(left(subnet))
    assert {left(name) for name in ("activations", "integrated_gradients", "slimming", "zero_out")} == {"100.0"}
    extractable = float(board["1.0", "simnpo"]["percent_extractable_held_out"])
    assert (
        left("simnpo", split="shown") == "0.0" and f"{left('simnpo')} % of the others, but {extractable:.1f} %" in said
    )
    assert f"brings back {back('npo')} points more than from the twin after NPO" in said
    assert f"the worst on DPO, {back('dpo')}; relearning brings back {back(both)} after" in said
    others = ("simnpo", "repselect", subnet)
    assert "{} after SimNPO, {} after RepSelect, {} after BalancedSubnet".format(*map(back, others)) in said
    aucs = [float(row["auc_loss_held_out"]) for (limit, name), row in board.items() if limit == "1.0" and row["score"] and row["group"] != "anchor"]  # fmt: skip
    twin = float(board["1.0", "never-planted twin"]["auc_loss_held_out"])
    assert f"an AUC of {min(aucs):.2f} or more; on the twin it is {twin:.2f}" in said
    kept = float(board["1.0", "retain-only training"]["percent_memorized_shown"])
    assert f"the retain set alone leaves {kept:.1f} % of the shown" in said


def test_what_the_leaderboard_says_of_text():
    table = committed_rows("results/leaderboard/leaderboard.csv")
    board = {(row["limit"], row["method"]): row for row in table if row["case"] == "text"}
    said = one_line("docs/leaderboard.md")

    def value(method: str, limit: str, name: str) -> float:
        return float(board[limit, method][name])

    ran = [row for (limit, _), row in board.items() if limit == "10.0" and row["group"] != "anchor"]
    assert "not run" not in {row["note"] for row in ran}
    wide = [row for row in ran if row["score"]]
    silent = [row for row in wide if float(row["percent_memorized_held_out"]) == 0]
    removed, hidden = (
        [row for row in silent if test(round(worst_excess(row)))] for test in (lambda x: x <= 0, lambda x: x > 20)
    )
    assert f"the small text model with the {len(ran)} that can take part" in said
    assert f"{len(silent)} of {len(wide)} mitigations leave no held-out passage" in said
    assert f"Of these, {len(removed)} give no more than the twin under any attack; {len(hidden)} give back" in said
    assert (
        f"{min(map(worst_excess, hidden)):.0f} to {max(map(worst_excess, hidden)):.0f} points more once all shown"
        in said
    )
    private = sum(float(row["private"]) > 0.05 for row in wide)
    assert f"within 10 %, {private} of {len(wide)} mitigations have a part above 0.05" in said
    for method, limit, words in (
        ("ascent_kl", "10.0", "closest to the twin, {0:.2f} ({1:.2f} to {2:.2f}) within 10 %"),
        ("gradient_difference", "2.0", "reaches {0:.2f} within 2 % ({1:.2f} to {2:.2f})"),
        ("kfade", "2.0", "within 2 %, at {0:.2f} ({1:.2f} to {2:.2f})"),
        ("balanced_subnet", "10.0", "its score is {0:.2f}."),
    ):
        assert words.format(*(value(method, limit, name) for name in ("score", "score_low", "score_high"))) in said
    aucs = [value(name, "10.0", "auc_loss_held_out") for name in ("balanced_subnet", "never-planted twin")]
    assert "(AUC {:.2f}; twin {:.2f})".format(*aucs) in said
    assert {f"{worst_excess(board['10.0', name]):.0f}" for name in ("zero_out", "integrated_gradients")} == {"98"}
    come_back = [
        worst_excess(board["10.0", name]) for name in ("undial", "satimp", "simnpo", "npo on durable's weights")
    ]
    assert (
        "({:.0f}, {:.0f} and {:.0f} points)".format(*come_back) in said and f"it gives back {come_back[3]:.0f}." in said
    )
    assert f"hides them ({worst_excess(board['2.0', 'kfac']):.0f} points come back)" in said
    for name in ("memorization_sinks", "goldfish"):
        row = board["2.0", name]
        assert (float(row["percent_memorized_held_out"]), worst_excess(row)) == (0, 0)
    kept = [value(name, "10.0", "percent_memorized_held_out") for name in ("l1", "spectral_norm", "loss_truncation")]
    assert f"leave {min(kept):.0f} to {max(kept):.0f} % within 10 %" in said
    assert not board["10.0", "example_tied_dropout"]["score"]
    mask = board["10.0", "random_mask"]
    assert f"leaves only {float(mask['percent_memorized_held_out']):.1f} % of the held-out" in said
    assert worst_excess(mask) == 100
    alone = value("retain-only training", "10.0", "percent_memorized_held_out")
    assert f"**on the retain set alone** leave {alone:.1f} %" in said


def test_what_the_leaderboard_says_of_backdoors():
    table = committed_rows("results/leaderboard/leaderboard.csv")
    board = {(row["limit"], row["method"]): row for row in table if row["case"] == "backdoor" and row["score"]}
    said = one_line("docs/leaderboard.md")
    said = said[said.index("**On the small backdoor model**") :]
    ran = {row["method"] for row in table if row["case"] == "backdoor" and row["group"] != "anchor"}
    ran -= {row["method"] for row in table if row["case"] == "backdoor" and row["note"] == "not run"}
    assert f"the small backdoor model with the same {len(ran)}," in one_line("docs/leaderboard.md")

    def value(method: str, limit: str = "5.0", name: str = "score") -> float:
        return float(board[limit, method][name])

    def score(method: str, limit: str = "5.0") -> str:
        return f"{value(method, limit):.2f}"

    def left(method: str, limit: str = "5.0") -> str:
        return f"{value(method, limit, 'percent_memorized_held_out'):.1f}"

    def back(method: str, limit: str = "5.0") -> str:
        return f"{worst_excess(board[limit, method]):.0f}"

    def interval(method: str) -> str:
        return "{:.2f}, {:.2f} to {:.2f}".format(
            *(value(method, "1.0", f"score{end}") for end in ("", "_low", "_high"))
        )

    assert f"**NPO** ({interval('npo')}) and **WGA** ({interval('wga')}) lead within 1 point" in said
    assert {left(name, "1.0") for name in ("npo", "wga")} == {"0.0"}
    assert f"{back('npo', '1.0')} and {back('wga', '1.0')} points more than from the twin" in said
    first = {name for (limit, name) in board if limit == "5.0" and board[limit, name]["rank_best"] in ("1", "1.0")}
    assert first == {"npo", "gradient_ascent", "wga", "ascent_kl", "dpo", "gradient_difference"}
    assert f"NPO ({score('npo')}), plain **gradient ascent** ({score('gradient_ascent')})" in said
    excess = [worst_excess(board["5.0", name]) for name in first]
    assert {left(name) for name in first} == {"0.0"}
    assert f"give back {min(excess):.0f} to {max(excess):.0f} points" in said
    subnet, capped, term = "balanced_subnet", "balanced_subnet with cap", "balanced_subnet, NPO term"
    assert left(subnet, "1.0") == "100.0" and f"Within 5 it leaves {left(subnet)} %, and {back(subnet)} points" in said
    assert f"with a cap it leaves {left(capped)} % and {back(capped)} come back" in said
    assert f"NPO's term {left(term)} % and {back(term)}." in said
    assert f"**K-FAC** leaves {left('kfac')} % and gives {back('kfac')} points back" in said
    assert f"**K-FADE** leaves {left('kfade')} %, **SVD** {left('svd')} %" in said
    scratch = ("goldfish", "memorization_sinks", "example_tied_dropout")
    assert "leave {}, {} and {} % within 5".format(*map(left, scratch)) in said
    study = [round(float(left(name))) for name in ("l1", "spectral_norm", "loss_truncation")]
    assert f"loss truncation {min(study)} to {max(study)} %" in said
    both, extra = (f"fine-tuning on {data} data" for data in ("both", "extra"))
    assert f"on both data reaches {score(both)}, on extra data {score(extra)}." in said
    assert f"but {back(both)} and {back(extra)} points come back" in said and {left(both), left(extra)} == {"0.0"}
    assert min(value(name, name="mean_test_accuracy") for name in (both, extra)) > value(
        "unedited", name="mean_test_accuracy"
    )
    neurons = "integrated_gradients"
    assert left(neurons, "1.0") == "0.0" and f"within 1 point ({score(neurons, '1.0')})" in said
    assert f"Activations leaves {left('activations', '1.0')} %" in said
    assert {left(name, "1.0") for name in ("zero_out", "slimming", "hard_concrete")} == {"100.0"}
    hidden = ("undial", "obliviate", "ceu")
    excess = [worst_excess(board["1.0", name]) for name in hidden]
    most = max(hidden, key=lambda name: float(left(name, "1.0")))
    assert f"leave at most {left(most, '1.0')} % exact and give {min(excess):.0f} to {max(excess):.0f} points" in said
    assert (
        f"leaves {left('random_mask')} %, as many steps on the retain set alone {left('retain-only training')} %."
        in said
    )
    near = {name: value(name, limit, "neighbour_accuracy") for limit, name in board}
    twin, unedited, best = (near.pop(name) for name in ("never-planted twin", "unedited", both))
    assert f"predicts {twin:.2f} of the tokens of the clean sequence, the unedited model {unedited:.2f}" in said
    others = max(value(name, limit, "neighbour_accuracy") for limit, name in board if name in near)
    assert f"both data {best:.2f}, every other mitigation at most {others:.2f}." in said


def test_as_published():
    rows: dict[str, list[dict[str, str]]] = {}
    for row in committed_rows("results/reproduction/as_published/as_published.csv"):
        rows.setdefault(row["method.name"].removesuffix("_as_published"), []).append(row)
    memorized = ("percent_memorized_left_out", "percent_memorized_train", "relearned_percent_memorized_counted")

    def cell(row: Mapping[str, str]) -> str:
        return f"{float(row['percent_memorized_counted']):.1f} % at {float(row['accuracy_lost']):.2f}"

    lines = table_after("docs/reproduction.md", "method | published, three seeds | all differences")
    for name, _, everything, *found, nothing in lines:
        of_method = rows[{"BalancedSubnet": "balanced_subnet"}.get(name, name.lower())]
        row = max(of_method, key=lambda one: len(one["method.differences"].split()))
        assert (everything, found) == (cell(row), percents([float(row[column]) for column in memorized]))
        without = [one for one in of_method if not one["method.differences"]]
        assert name == "BalancedSubnet" or [nothing] == [cell(one) for one in without]
    assert len(lines) == 4
    alone = {row["method.differences"]: row for row in rows["balanced_subnet"]}
    two, said = [alone[name] for name in ("mixture", "test_triggers")], one_line("docs/reproduction.md")
    assert {float(row[f"percent_memorized_{name}"]) for row in two for name in ("test", "train", "left_out")} == {0}
    lost, back = ([float(row[name]) for row in two] for name in ("accuracy_lost", "relearned_percent_memorized_test"))
    assert "costs {:.2f} points, the test triggers alone {:.2f}.".format(*lost) in said
    assert f"at most {max(back):.1f} % of all triggers come back" in said


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
    search = {row["name"]: row for row in read("benchmarks/results_float32.json")["rows"]}["finding"]
    found = search["tokens_per_second"]
    text = f"{search['ratio']:.0f}x as fast as generation window after window, at {found['ours']} tokens/s; with"
    assert f"{text} `--screen 0.5` at {found['screened']:,}." in one_line("docs/speed.md")
    steps = [rows[SPEED[what]] for what, *_ in lines[:3]]
    stock = [f"{row['stock_seconds'] / row['ours_seconds']:.1f}x" for row in steps]
    sentence = f"Against stock transformers the first three are {stock[0]}, {stock[1]} and {stock[2]}"
    assert sentence in committed("docs/speed.md")


def test_comparison():
    rows = committed_rows("results/compare_mitigations/noise/table.csv")
    compared = [row for row in rows if row["family"] not in ("no mitigation", "controls")]
    text = one_line("docs/methods.md")
    assert f"{len(compared)} mitigations with their variants" in text and len(rows) == len(compared) + 5
    assert f"[{len(compared)} mitigations on one model]" in one_line("README.md")


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
            assert f"{row['added_percent']:.1f} % of a bfloat16 step" in " ".join(card.split())
