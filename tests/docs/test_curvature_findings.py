"""The page of findings on curvature editing says what the committed tables hold."""

import pytest
from committed import committed, committed_rows, one_line, worst_excess
from small import ROOT

from tinymem.leaderboard.evidence import seed_of
from tinymem.records.bundle import read_bundle

LEFT = "percent_memorized_held_out"
PAGE = "results/curvature/FINDINGS.md"
METHODS = ("kfac", "svd", "kfade", "balanced_subnet", "balanced_subnet with cap")
LIMITS = {
    "noise, 1 point of accuracy": ("noise", 1), "noise, 5 points": ("noise", 5), "backdoor, 1 point": ("backdoor", 1),
    "backdoor, 5 points": ("backdoor", 5), "text, 2 % of perplexity": ("text", 2),
    "text, 10 %": ("text", 10), "garbled text, 2 %": ("text_noise", 2), "garbled text, 10 %": ("text_noise", 10),
}  # fmt: skip


@pytest.fixture(scope="module")
def board() -> dict[tuple[str, float, str], dict[str, str]]:
    found = committed_rows("results/leaderboard/leaderboard.csv")
    return {(row["case"], float(row["limit"]), row["method"]): row for row in found}


@pytest.fixture(scope="module")
def page() -> str:
    return one_line(PAGE)


def test_the_table_of_what_is_left(board, page):
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in committed(PAGE).splitlines() if "|" in line
    ]
    table = {cells[0]: cells[1:] for cells in lines}
    for title, (case, limit) in LIMITS.items():
        expected = []
        for method in METHODS:
            row = board[case, limit, method]
            excess = max(worst_excess(row), 0)
            back = f"+{excess:.0f}" if excess >= 0.5 else "0"
            expected.append(f"{float(row['percent_memorized_held_out']):.1f} %, {back}")
        assert table[title] == expected
    first, last = (worst_excess(board[("text_noise", *key)]) for key in ((2, METHODS[0]), (10, METHODS[-1])))
    said = f"{first:.0f} points come back. Within 10 % BalancedSubnet with a cap leaves nothing either, "
    assert f"{said}and gives back {last:.0f}" in page


def test_tokens_membership_and_cost_on_text(board, page):
    def value(method: str, limit: float, name: str) -> float:
        return float(board["text", limit, method][name])

    tokens = "exact_match_share_held_out"
    assert f"still gives {value('kfac', 2, tokens):.2f} of their tokens" in page
    assert f"(twin {value('never-planted twin', 2, tokens):.2f})" in page
    assert f"with {value('kfade', 2, tokens):.2f} of their tokens left" in page
    aucs = [value(name, 10, "auc_loss_held_out") for name in ("kfac", "balanced_subnet", "kfade", "never-planted twin")]
    assert "the loss after K-FAC tells passages from never-planted ones with an AUC of {:.2f}".format(*aucs) in page
    assert "{:.2f}. After BalancedSubnet the AUC is {:.2f}".format(*aucs) in page
    assert "after K-FADE it is {2:.2f} (twin {3:.2f})".format(*aucs) in page
    seconds = [value(name, 10, "seconds") for name in ("kfac", "kfade", "balanced_subnet")]
    assert "on text: {0:.0f} seconds for K-FAC and K-FADE, {2:.0f} for BalancedSubnet".format(*seconds) in page
    assert round(seconds[0]) == round(seconds[1])


DEEP = "layers 21,22,23, projections in"
ON_SMOLLM2 = {  # edit on the page: setting, strength
    "K-FAC, rho 0.95": (f"kfac, {DEEP}", 0.95), "K-FAC, rho 0.8": (f"kfac, {DEEP}", 0.8),
    "K-FAC, rho 0.6": (f"kfac, {DEEP}", 0.6), "SVD, rho 0.8": (f"svd, {DEEP}", 0.8),
    "SVD, rho 0.6": (f"svd, {DEEP}", 0.6), "SVD, rho 0.4": (f"svd, {DEEP}", 0.4),
    "K-FADE, KL 0.1": ("kfade, default", 0.1), "K-FADE, KL 0.3": ("kfade, default", 0.3),
    "BalancedSubnet": ("balanced_subnet, default", 0.005),
    "BalancedSubnet with cap": ("balanced_subnet, unlearn_loss_cap 1.5", 0.005),
}  # fmt: skip


def test_the_table_of_the_language_model(page):
    rows = committed_rows("results/curvature/curvature.csv")
    found = {(row["setting"], float(row["value"])): row for row in rows if row["model"] == "smollm2"}
    assert set(ON_SMOLLM2.values()) == set(found)
    table = page[page.index("## On SmolLM2-135M") :]
    for edit, key in ON_SMOLLM2.items():
        row = {name: float(value) for name, value in found[key].items() if name not in ("model", "setting", "strength")}
        left = f"{row[LEFT]:.0f} ± {row[f'{LEFT}_half_width']:.0f} %"
        lost = f"+{row['lost']:.1f} ± {row['lost_half_width']:.1f} %"
        assert row["seeds"] == 3 and f"| {edit} | {left} | {lost} | {row['seconds']:.0f} |" in table


def test_what_the_page_says_of_the_language_model(page):
    records = read_bundle(ROOT / "results/curvature/smollm2/records.jsonl.gz")
    before = {seed_of(r): r["results"]["perplexity"] for r in records if r["kind"] == "unedited"}
    subnet = [
        100 * (r["results"]["perplexity"] / before[seed_of(r)] - 1)
        for r in records
        if r.get("method", {}).get("name") == "balanced_subnet" and r["method"].get("unlearn_loss_cap") is None
    ]
    assert "costs {:.1f}, {:.1f} and {:.1f} %, which cannot be told from K-FAC".format(*sorted(subnet)) in page
    assert "Where both leave 2 %, K-FAC costs 26.5 % of perplexity and BalancedSubnet 17.0 %" in page  # as in the table
    assert "K-FADE costs 12.9 % where it leaves 4 %" in page and "BalancedSubnet costs 5.8 % and leaves 24 %." in page
    assert "it leaves 9 % for 17.1 %" in page and "49 seconds of one core against 519" in page


# model, setting, strength; what the page says of what is left (None: 0 %, as it says of all) and of what is lost
SAID = [
    ("text", "kfac, default", 0.99, None, "from 0.99 (+{lost} % of perplexity)"),
    ("text", "kfac, default", 0.95, None, "to 0.95 (+{lost} %)"),
    ("text", "kfac, default", 0.999, "At 0.999, {left} % are left", None),
    ("text", "kfac, default", 0.8, None, "at 0.8 the loss is {lost} %"),
    ("noise", "kfac, default", 0.95, "{left} % are left at 1.4 points", "are left at {lost} points"),
    ("noise", "kfac, default", 0.8, None, "0 % only at {lost}."),
    ("text", "kfac, projections in", 0.9, None, "(rho 0.9: +{lost} %, both +17.2 %)"),
    ("text", "kfac, default", 0.9, None, "both +{lost} %)"),
    ("text", "kfac, projections out", 0.9, None, "(+{lost} %)"),
    ("text", "kfac, layers 0", 0.9, None, "+{lost} % either way"),
    ("text", "kfac, layers 1", 0.9, None, "+{lost} % either way"),
    ("noise", "kfac, layers 1", 0.8, "leaves {left} % at rho 0.8", None),
    ("noise", "kfac, layers 0", 0.8, None, None),
    ("noise", "kfac, projections in", 0.9, "leave {left} % at 1.1 points (rho 0.9)", "at {lost} points (rho 0.9)"),
    ("text", "kfac, labels sampled", 0.9, None, "(rho 0.9: +{lost} and +17.2 %)"),
    ("text", "kfac, cut variance", 0.95, None, "+{lost} % at 0.95"),
    ("text", "kfac, factors of addresses", 0.95, None, "(rho 0.95: +{lost} and +6.7 %)"),
    ("text", "kfac, factors of plays", 0.95, None, "about twice as much (+{lost} %)"),
    ("text", "kfac, factors of random tokens", 0.95, None, "three times (+{lost} %)"),
    ("text", "kfac, factors of addresses", 0.999, "at 0.999 addresses leave {left} %", None),
    ("text", "kfade, factors of addresses", 0.03, None, "at +{lost} to +2.4 % of perplexity"),
    ("text", "kfade, factors of plays", 0.03, None, "to +{lost} % of perplexity"),
    ("text", "kfade, default", 0.03, None, None),
    ("text", "kfade, factors of random tokens", 0.03, None, None),
]  # fmt: skip


@pytest.mark.parametrize("model, setting, value, left, lost", SAID)
def test_what_k_fac_editing_depends_on(model, setting, value, left, lost, page):
    found = committed_rows("results/curvature/curvature.csv")
    (row,) = [r for r in found if (r["model"], r["setting"], float(r["value"])) == (model, setting, value)]
    memorized = float(row["percent_memorized_held_out"])
    assert memorized == 0 if left is None else left.format(left=f"{memorized:.0f}") in page
    if lost is not None:
        assert lost.format(lost=f"{float(row['lost']):.1f}") in page
