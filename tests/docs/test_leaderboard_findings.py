"""The findings of the leaderboard, and what the README says of it, are what the committed table holds."""

from committed import committed_rows, one_line, worst_excess


def test_leaderboard_in_the_readme():
    table = committed_rows("results/leaderboard/leaderboard.csv")
    rows = {row["method"]: row for row in table if (row["case"], row["limit"]) == ("noise", "1.0")}
    ran = [row for row in rows.values() if row["group"] != "anchor" and row["note"] != "not run"]
    assert f"the small noise model with {len(ran)} mitigations ({len(ran) - 3} and three variants)" in one_line(
        "docs/leaderboard.md"
    )
    npo, kfade, subnet = (f"{float(rows[name]['score']):.2f}" for name in ("npo", "kfade", "balanced_subnet"))
    words = f"on noise, within a point of accuracy, NPO has {npo}, K-FADE {kfade}, BalancedSubnet {subnet};"
    assert words in one_line("README.md")


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
    assert f"They leave {left('npo')} and {left('dpo')} % exact" in said
    scratch = ("goldfish", "memorization_sinks")
    values = (*map(score, scratch), *map(left, scratch))
    assert "reaches {} and **memorization sinks** {}; they leave {} and {} % exact".format(*values) in said
    assert {score(name) for name in ("spectral_norm", "loss_truncation", "l1")} == {"0.02"}
    reached = f"it reaches {score(dropout, '5.0')} ({interval(dropout, '5.0')})"
    assert f"{reached}, on a par with DPO ({score('dpo', '5.0')})" in said
    assert not board["1.0", dropout]["score"] and f"it leaves {left(dropout, '5.0')} % exact" in said
    assert (
        f"**RepSelect** ({score('repselect')}), **PDU** ({score('pdu')}), **gradient difference** and **SimNPO**"
        in said
    )
    assert f"(both {score('simnpo')})" in said and score("simnpo") == score("gradient_difference")
    assert f"it falls from {score('npo')} to {score(masked)}" in said
    assert f"leaves {left(subnet)} % within 1 point of accuracy and {left(subnet, '5.0')} % within 5" in said
    assert f"with scores of {score(subnet)} and {score(subnet, '5.0')}." in said
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
    assert f"After NPO it brings back {back('npo')} points more than from the twin" in said
    assert f"on DPO is sampling, with {back('dpo')} point. Relearning brings back {back(both)} points after" in said
    others = ("simnpo", "repselect", subnet)
    assert "{} after SimNPO, {} after RepSelect, {} after BalancedSubnet".format(*map(back, others)) in said
    within = [row for (limit, _), row in board.items() if limit == "1.0" and row["score"] and row["group"] != "anchor"]
    aucs = [float(row["auc_loss_held_out"]) for row in within]
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
    assert f"{len(silent)} of the {len(wide)} mitigations that have a setting there leave no held-out" in said
    assert f"Of these, {len(removed)} give no more than the twin under any attack; {len(hidden)} give back" in said
    assert (
        f"{min(map(worst_excess, hidden)):.0f} to {max(map(worst_excess, hidden)):.0f} points more once all shown"
        in said
    )
    private = sum(float(row["private"]) > 0.05 for row in wide)
    assert f"within 10 %, only {private} of {len(wide)} score above 0.05 on `private`" in said
    for method, limit, words in (
        ("ascent_kl", "10.0", "closest to the twin, {0:.2f} ({1:.2f} to {2:.2f}) within 10 %"),
        ("gradient_difference", "2.0", "reaches {0:.2f} within 2 % ({1:.2f} to {2:.2f})"),
        ("kfade", "2.0", "within 2 %, with a score of {0:.2f} ({1:.2f} to {2:.2f})"),
        ("balanced_subnet", "10.0", "so its score is {0:.2f}."),
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
    assert f"hides them within 2 % ({worst_excess(board['2.0', 'kfac']):.0f} points come back)" in said
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
    assert f"**on the retain set alone** leaves {alone:.1f} %" in said


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
    assert f"**K-FAC** leaves {left('kfac')} % and gives back {back('kfac')} points" in said
    assert f"**K-FADE** leaves {left('kfade')} %, **SVD** {left('svd')} %" in said
    scratch = ("goldfish", "memorization_sinks", "example_tied_dropout")
    assert "leave {}, {} and {} % within 5".format(*map(left, scratch)) in said
    study = [round(float(left(name))) for name in ("l1", "spectral_norm", "loss_truncation")]
    assert f"loss truncation leave {min(study)} to {max(study)} %" in said
    both, extra = (f"fine-tuning on {data} data" for data in ("both", "extra"))
    assert f"on both data sets reaches {score(both)}, on extra data {score(extra)}." in said
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
    assert (
        f"leave at most {left(most, '1.0')} % exact and give back {min(excess):.0f} to {max(excess):.0f} points" in said
    )
    assert (
        f"leaves {left('random_mask')} %, and the same number of steps on the retain set alone leaves "
        f"{left('retain-only training')} %." in said
    )
    near = {name: value(name, limit, "neighbour_accuracy") for limit, name in board}
    twin, unedited, best = (near.pop(name) for name in ("never-planted twin", "unedited", both))
    assert f"predicts {twin:.2f} of the tokens of the clean sequence, the unedited model {unedited:.2f}" in said
    others = max(value(name, limit, "neighbour_accuracy") for limit, name in board if name in near)
    assert f"both data sets {best:.2f}, every other mitigation at most {others:.2f}." in said


def test_what_the_leaderboard_says_of_garbled_text():
    table = [row for row in committed_rows("results/leaderboard/leaderboard.csv") if row["case"] == "text_noise"]
    board = {(row["limit"], row["method"]): row for row in table if row["score"]}
    said = one_line("docs/leaderboard.md")
    said = said[said.index("**On the small model of garbled text**") :]
    ran = {row["method"] for row in table if row["group"] != "anchor" and row["note"] != "not run"}
    assert f"the small model of garbled text with all {len(ran)}," in one_line("docs/leaderboard.md")

    def value(method: str, limit: str, name: str) -> float:
        return float(board[limit, method][name])

    def score(method: str, limit: str = "2.0") -> str:
        return f"{value(method, limit, 'score'):.2f}"

    def interval(method: str, limit: str) -> str:
        return "{:.2f} to {:.2f}".format(*(value(method, limit, f"score_{end}") for end in ("low", "high")))

    def left(method: str, limit: str = "2.0") -> str:
        return f"{value(method, limit, 'percent_memorized_held_out'):.1f}"

    def back(method: str, limit: str = "2.0") -> int:
        return round(worst_excess(board[limit, method]))

    tokens = "exact_match_share_held_out"
    assert f"it predicts {value('never-planted twin', '2.0', tokens):.2f} of the noised tokens" in said
    assert f"{score('goldfish')} ({interval('goldfish', '2.0')}) within 2 % of perplexity" in said
    wide = score("goldfish", "10.0"), interval("goldfish", "10.0"), back("goldfish", "10.0")
    assert (
        "within 10 % {} ({}), with none exact and {} points".format(*wide) in said and left("goldfish", "10.0") == "0.0"
    )
    for words, methods, limit in (
        ("**ascent with KL** ({}) and **NPO** ({}) lead within 2 %", ("ascent_kl", "npo"), "2.0"),
        ("**K-FAC** ({}), DPO ({}) and **K-FADE** ({}) cannot", ("kfac", "dpo", "kfade"), "2.0"),
        ("RepSelect reaches {}", ("repselect",), "10.0"),
    ):
        assert words.format(*(score(name, limit) for name in methods)) in said
    assert {board["2.0", name]["rank_best"] for name in ("ascent_kl", "npo", "kfac", "dpo", "kfade")} == {"2"}
    assert f"({interval('repselect', '10.0')})" in said
    tried = [row for (limit, _), row in board.items() if limit == "2.0" and row["group"] != "anchor"]
    silent = {row["method"]: back(row["method"]) for row in tried if float(row["percent_memorized_held_out"]) == 0}
    hidden = {name: points for name, points in silent.items() if points > 0}
    assert f"{len(silent)} of {len(tried)} mitigations leave no held-out passage exact, and {len(hidden)} of" in said
    assert f"give back {min(hidden.values())} to {max(hidden.values())} points" in said
    assert (
        hidden["simnpo"] == hidden["ceu"] and f"SimNPO and CEU {hidden['simnpo']}, SatImp {hidden['satimp']}," in said
    )
    assert f"Activations {hidden['activations']}, K-FAC {hidden['kfac']}, NPO {hidden['npo']}." in said
    capped = "balanced_subnet with cap"
    assert f"within 10 % that forgets, and leaves {left('balanced_subnet', '10.0')} %" in said
    assert left(capped, "10.0") == "0.0" and f"none there, but {back(capped, '10.0')} points" in said
    overshot = [name for name, points in silent.items() if points == 0]
    assert set(overshot) == {"wga", "pdu", "fine-tuning on both data", "fine-tuning on extra data"}
    kept = [value(name, "2.0", tokens) for name in overshot]
    assert f"predict {min(kept):.2f} to {max(kept):.2f} of the tokens" in said
    assert max(float(score(name)) for name in overshot) == 0.04
    assert max(value(name, "2.0", "perplexity") for name in overshot) < value("unedited", "2.0", "perplexity")
    assert f"leaves {left('random_mask')} %, and relearning brings {back('random_mask')} points back" in said
