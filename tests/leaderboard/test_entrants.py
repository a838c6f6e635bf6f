"""Who takes part, and which settings are tried."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny import new_model, new_task

from tinymem.errors import UserError
from tinymem.leaderboard import cases, entrants
from tinymem.leaderboard.bench import TrainedBench
from tinymem.leaderboard.protocol import join_strengths, split_strengths
from tinymem.localize.registry import METHODS, find_methods
from tinymem.options import as_flags
from tinymem.regularizers.registry import REGULARIZERS


def small_case(name="noise", trials=entrants.TRIALS):
    (case,) = cases.find_cases([name], True, trials)
    return case


def test_every_mitigation_of_the_registries_takes_part_with_as_many_trials():
    found = {each.name: each for each in entrants.entrants([], small_case())}
    assert set(METHODS) < set(found) and {entry.name for entry in REGULARIZERS} < set(found)
    assert {"random_mask", entrants.RETAIN_ONLY} <= {
        each.name for each in found.values() if each.group == entrants.ANCHOR
    }
    counts = {name: len(split_strengths(each)) for name, each in found.items() if each.name in METHODS}
    assert Counter(counts.values())[entrants.TRIALS] >= 26 and max(counts.values()) == entrants.TRIALS
    assert all(each.needs for each in found.values())


def test_fewer_trials_than_strengths():
    assert {
        len(split_strengths(each)) for each in entrants.entrants(["neuron", "objective"], small_case(trials=2))[3:]
    } == {2}


def test_a_hypercube_visits_every_value_equally_often():
    grid = {"lr": (1, 2, 3, 4), "beta": (0.1, 0.3), "one": ("x",)}
    found = entrants.latin_hypercube(grid, 4, random.Random(0))
    assert sorted(each["lr"] for each in found) == [1, 2, 3, 4]
    assert Counter(each["beta"] for each in found) == {0.1: 2, 0.3: 2}
    assert len({tuple(each.values()) for each in entrants.latin_hypercube(grid, 8, random.Random(0))}) == 8


def test_strengths_are_spread_or_refined():
    assert entrants.spread((10, 20, 50, 100), 3) == (20, 50, 100) and entrants.spread((1, 2), 3) == (1, 2)
    assert entrants.refined((0.01, 1.0), 3) == (0.01, 0.1, 1.0)
    assert entrants.refined((10, 40), 3) == (10, 20, 40) and type(entrants.refined((10, 40), 3)[1]) is int
    assert entrants.refined((0.1, 0.11), 9) == (0.1, 0.11) and entrants.refined((1, 2), 9) == (1, 2)  # none twice


def test_strengths_that_a_method_of_ones_own_refuses_are_not_tried(tmp_path):
    (tmp_path / "bits.py").write_text(
        "from tinymem.options import option, settings\n@settings\nclass HyperParameters:\n"
        "    bits: tuple[int, ...] = option((2, 16), 'bits', choices=(2, 4, 8, 16), strength=True)\n"
        "def attack(model, task, hp, bits): ...\n"
    )
    *_, own = entrants.entrants([str(tmp_path / "bits.py")], small_case())
    tried = [value for trial in own.trials for value in trial.strengths]
    assert sorted(tried) == [2, 8, 16]  # 3, 5, 11 ... are between the two of the grid, but no choice


def test_trials_that_differ_in_strength_alone_share_a_command():
    (npo,) = [each for each in entrants.entrants(["npo"], small_case()) if each.name == "npo"]
    assert len(split_strengths(npo)) == 12 and len(npo.trials) == 4
    assert {trial.strengths for trial in join_strengths(split_strengths(npo))} == {
        trial.strengths for trial in npo.trials
    }


@pytest.mark.parametrize("asked, words", [(["nop"], "--methods nop: must be some of"), (["x.py"], "x.py")])
def test_an_unknown_mitigation_is_one_line(asked, words):
    with pytest.raises(UserError, match=words) as caught:
        entrants.entrants(asked, small_case())
    assert "\n" not in str(caught.value)


def test_a_random_mask_is_of_the_size_that_it_says():
    from tinymem.leaderboard import random_mask

    model, task = new_model("gpt2"), new_task()
    scores = random_mask.score(model, task, None)
    again = random_mask.score(model, task, None)
    assert all(torch.equal(scores[name], again[name]) for name in scores)
    assert 0.45 < torch.cat([each.flatten() for each in scores.values()]).mean() < 0.55


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "no table"),
        ("[mine]\nn_layer = 3", "mine.n_layer: no such setting"),
        ("[mine]\nn_layers = 'x'", "n_layers"),
        ("[mine]\nnum_chunks = 9", "mine.num_chunks: no such setting of this data"),
        ("[mine]\ndata_name = 'wiki'\nlength = 9", "mine.length: no such setting of this data"),
        ("[mine]\ntwin = true", "mine.twin: every model has a twin"),
        ("[[", "cannot be read"),
        ("mine = 3", "mine is not a table"),
        ("[mine]\ndescription = 3", "mine.description 3: must be text"),
        ('[mine]\ndescription = "a\\nb"', "mine.description .*: must be one line"),
    ],
)
def test_a_wrong_model_file_is_one_line(content, words, tmp_path):
    path = tmp_path / "models.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        cases.find_cases([str(path)], True, 12)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_case_is_read_as_it_was_written(tmp_path):
    (case,) = cases.find_cases(["noise"], True, 5)
    case.write(tmp_path)
    assert replace(case, trials=3).differences(case) == "trials 3, not 5" and not case.differences(case)
    assert cases.read_case(tmp_path) == case
    planted, twin = TrainedBench(case, 2).pair
    assert planted.data.seed == twin.data.seed == 2 and twin.data.twin and not planted.data.twin


def test_who_needs_clean_sequences_takes_no_part_where_there_are_none():
    for name, has in (("noise", True), ("backdoor", True), ("text", False)):
        found = {each.name for each in entrants.entrants([], small_case(name))}
        assert all((each in found) == has for each in entrants.CLEAN)
        assert {"npo", "fine-tuning on extra data"} < found
    with pytest.raises(UserError, match="--methods dpo: cannot run on text"):
        entrants.entrants(["dpo"], small_case("text"))


def test_anchors_alone():
    assert [each.name for each in entrants.entrants(["anchor"], small_case())] == [
        "random_mask",
        "output_filter",
        entrants.RETAIN_ONLY,
    ]


def test_the_random_mask_is_known_by_its_settings_alone():
    """A digest of its file in the records would lose the committed anchor with every change of that file."""
    (trial,) = entrants.entrants(["anchor"], small_case())[0].trials
    assert trial.method.settings(trial.hp, 0.05) == {"name": "random_mask", "ratio": 0.05}
    assert find_methods([trial.method.place])[0].module is trial.method.module


def test_settings_of_several_words_are_spelled_as_the_scripts_read_them():
    (entrant,) = [each for each in entrants.entrants([], small_case()) if each.name == "npo on durable's weights"]
    words = as_flags(entrant.trials[0].hp, leave_out=("steps",))
    place = words.index("--update_mask")
    assert words[place + 1 : place + 3] == ["durable", "0.1"] and "--dtype=float32" in words
