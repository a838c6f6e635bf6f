"""Attacks from the command line: tables, figures, records that are added, and what is refused."""

import pytest
from small import ROOT, in_process

from tinymem.attacks.registry import ATTACKS, FULL, SMALL, budget
from tinymem.records.table import find_records, load_records

SCRIPT = "src/localize/localize_memorization.py"


@pytest.fixture
def unlearn(memorizing_backdoor, tmp_path):
    def run(*words):
        common = ["--output_dir", tmp_path / "out", "--data_dir", tmp_path / "data", "--no_save_model"]
        model = ["--model_path", memorizing_backdoor.checkpoint, "--localization_method", "durable", "--ratio", 0.2]
        in_process(SCRIPT, *model, *common, *words)

    run.folder = tmp_path / "out"
    return run


@pytest.mark.slow
def test_all_attacks_from_the_command_line(unlearn, capsys):
    quick = ["--relearn.steps", 2, "--relearn_clean.steps", 2, "--relearn_all.steps", 2, "--soft_prompt.steps", 2]
    quick += ["--relearn_adaptive.steps", 2, "--relearn_adaptive.lrs", 1e-3, "--prefix_shift.tokens", 2]
    quick += ["--prefix_shorten.tokens", 2, "--weight_noise.scale", 0.1, "--prune.share", 0.1]

    unlearn("--holdout_fraction", 0.5, "--attack", "all", "--plot", *quick)
    printed = capsys.readouterr().out
    assert (
        "% of held-out sequences at the setting of each attack that brings back most; most: under the worst" in printed
    )
    head = printed.partition("brings back most; ")[2].splitlines()[1].split()
    assert (
        head[:5] == ["model", "before", "most", "worst", "at_equal_utility"] and "excess" not in printed
    )  # without a twin
    assert "at_equal_utility: mixed with the original until no more than 1 point of accuracy is lost" in printed
    kinds = [record["kind"] for record in load_records(unlearn.folder)]
    strengths = sum(len(m.strengths(m.hyper_parameters())) for m in ATTACKS.values())
    assert kinds.count("attack") == 2 * (strengths - 3 - 1 - 3 - 1 - 2 - 2 - 2 - 2)  # what `quick` leaves out
    names = {record["attack"]["name"] for record in load_records(unlearn.folder) if record["kind"] == "attack"}
    assert names == set(ATTACKS)
    table, *figures, way_back = sorted(path.name for path in (unlearn.folder / "recovery").iterdir())
    assert table == "curves.csv" and (unlearn.folder / "recovery" / table).read_text().startswith("model,attack,")
    head, *rows = (unlearn.folder / "recovery" / way_back).read_text().splitlines()
    assert head == "model,alpha,memorized,mean_test_accuracy,lost,at_equal_utility" and len(rows) == 1 + 7
    assert len(figures) == 2 and figures[0].startswith("durable_0.2_")
    times = {path: path.stat().st_mtime_ns for path in find_records(unlearn.folder)}
    unlearn("--holdout_fraction", 0.5, "--attack", "all", *quick)
    assert times == {path: path.stat().st_mtime_ns for path in find_records(unlearn.folder)}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--attack", "relearn", "--relearn.steps", 0], "--relearn.steps 0: must be >= 1"),
        (["--attack", "relearn", "--relearn.share", 0], "--relearn.share 0.0: must be in"),
        (["--attack", "relearn", "--relearn.share", 1], "sees all"),
        (["--attack", "soft_prompt", "--soft_prompt.vectors", 0], "--soft_prompt.vectors 0: must be"),
        (["--attack", "sampling", "--sampling.p", 1], "--sampling.p 1.0: must be in"),
        (["--attack", "interpolate", "--interpolate.alpha", 2], "--interpolate.alpha 2.0: must be in"),
        (["--attack", "weight_noise", "--weight_noise.draws", 0], "--weight_noise.draws 0: must be in [1, 1000]"),
        (["--attack", "relearning"], "--attack relearning: must be one of"),
        (["--relearn.steps", 3], "--relearn.steps: only with --attack relearn"),
        (["--attack_budget", "small"], "--attack_budget: only with --attack"),
        (["--attack_metrics", "perplexity"], "--attack_metrics: only with --attack"),
        (["--attack", "prune", "--attack_metrics", "perplexty"], "--attack_metrics perplexty: no such metric"),
        (["--attack", "prune", "--attack_metrics", "no.py"], "--attack_metrics no.py: no such file"),
        (["--attack", "prune", "--attack_metrics", "auc_twin"], "--attack_metrics auc_twin: nothing of it is measured"),
        (["--attack", "relearn", "--attack_budget", "tiny"], "invalid choice: 'tiny'"),
    ],
)
def test_bad_input_is_one_line(unlearn, capsys, words, message):
    with pytest.raises(SystemExit) as end:
        unlearn(*words)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and message in error, error


@pytest.mark.parametrize("name", ATTACKS)
def test_a_small_budget_is_part_of_the_full_one(name):
    attack = ATTACKS[name]
    full = attack.hyper_parameters(**budget(attack, FULL))
    small = attack.hyper_parameters(**budget(attack, SMALL))
    assert full == attack.hyper_parameters()
    assert len(attack.strengths(small)) == 1 and set(attack.strengths(small)) <= set(attack.strengths(full))
    if name == "relearn_adaptive":
        assert set(small.lrs) < set(full.lrs) and set(small.steps) < set(full.steps)


def test_a_small_budget_from_the_command_line(unlearn):
    words = ["--holdout_fraction", 0.5, "--attack", "weight_noise", "prune", "--attack_metrics", "percent_memorized"]
    unlearn(*words, "--attack_budget", "small", "--prune.share", 0.2)
    attacks = [record["attack"] for record in load_records(unlearn.folder) if record["kind"] == "attack"]
    expected = [{"name": "prune", "share": 0.2}, {"name": "weight_noise", "scale": 0.1}]  # one draw: none is named
    assert sorted(attacks, key=lambda section: section["name"]) == [each for each in expected for _ in range(2)]


def test_every_attack_has_a_card():
    text = (ROOT / "docs/attacks.md").read_text()
    for name in ATTACKS:
        assert text.count(f"\n### {name}\n") == 1 and text.count(f"<!-- settings: {name} -->") == 1, name
