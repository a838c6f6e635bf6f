"""Shown, validation and held-out sequences: disjoint, by seed, none empty without a word."""

from dataclasses import replace

import pytest
import torch

from tinymem.errors import UserError
from tinymem.localize.task import TaskSettings, split_groups, unlearning_task


@pytest.mark.parametrize("seed", range(4))
def test_three_ways(seed):
    settings = TaskSettings(holdout_fraction=0.3, validation_fraction=0.2, unlearn_seed=seed)
    shown, held_out, validation = split_groups(torch.arange(50), settings)
    assert (len(shown), len(held_out), len(validation)) == (25, 15, 10)
    assert sorted([*shown.tolist(), *held_out.tolist(), *validation.tolist()]) == list(range(50))
    two_ways = split_groups(torch.arange(50), TaskSettings(holdout_fraction=0.3, unlearn_seed=seed))
    assert torch.equal(two_ways[1], held_out) and not len(two_ways[2])  # results do not change with a validation set


def test_a_memory_is_on_one_side():
    groups = torch.arange(40) // 4
    shares = TaskSettings(holdout_fraction=0.25, validation_fraction=0.25)
    for rows in split_groups(groups, shares):
        assert len(rows) and all((groups == group).sum() == (groups[rows] == group).sum() for group in groups[rows])


@pytest.mark.parametrize(
    "shares, count, message",
    [
        ((0.5, 0.5), 9, "--holdout_fraction 0.5 and --validation_fraction 0.5: leave nothing to show"),
        ((0.45, 0.5), 2, "--validation_fraction 0.5: leaves none of 2 sequences to unlearn"),
    ],
)
def test_nothing_left_is_one_line(shares, count, message):
    with pytest.raises(UserError, match=message):
        split_groups(torch.arange(count), TaskSettings(holdout_fraction=shares[0], validation_fraction=shares[1]))


@pytest.mark.parametrize("share, count", [(0.5, 1), (0.1, 4)])
def test_a_share_that_holds_out_nothing_is_said(share, count, caplog):
    shown, held_out, _ = split_groups(torch.arange(count), TaskSettings(holdout_fraction=share))
    assert len(shown) == count and not len(held_out)
    assert f"--holdout_fraction {share}: holds out none of {count} sequence(s)" in caplog.text
    caplog.clear()
    split_groups(torch.arange(10), TaskSettings(holdout_fraction=share))
    split_groups(torch.arange(0), TaskSettings(holdout_fraction=share))  # nothing is memorized
    assert not caplog.text


def test_no_part_of_validation_is_shown_or_kept(memorizing_backdoor):
    settings = TaskSettings(holdout_fraction=0.25, validation_fraction=0.25)
    task = unlearning_task(memorizing_backdoor.model, memorizing_backdoor.dataset, settings)
    sets = [task.forget.planted, task.held_out.planted, task.validation.planted, task.retain]
    rows = [{tuple(row) for row in part.tolist()} for part in sets]
    assert all(rows) and all(not a & b for i, a in enumerate(rows) for b in rows[:i])
    assert settings.recorded()["validation_fraction"] == 0.25
    assert "validation_fraction" not in TaskSettings().recorded()


def rows_of(tokens) -> set:
    return {tuple(row) for row in tokens.tolist()}


def test_forgetting_test_triggers_and_retaining_planted_rows_are_choices(memorizing_backdoor):
    model, dataset = memorizing_backdoor.model, memorizing_backdoor.dataset
    usual = unlearning_task(model, dataset, TaskSettings(unlearn_set_name="noise"))
    triggers = unlearning_task(model, dataset, TaskSettings(unlearn_set_name="noise", forget="test"))
    assert rows_of(triggers.forget.planted) == rows_of(dataset.test_artifacts.planted)
    assert torch.equal(triggers.retain, usual.retain)  # what was planted in the training set is not retained
    everything = unlearning_task(model, dataset, TaskSettings(unlearn_set_name="noise", forget="test", retain="all"))
    assert rows_of(usual.forget.planted) <= rows_of(everything.retain)
    assert len(everything.retain) == len(dataset.order.unique())
    settings = TaskSettings(forget="test", retain="all").recorded()
    assert (settings["forget"], settings["retain"]) == ("test", "all")
    assert not {"forget", "retain"} & set(TaskSettings().recorded())


@pytest.mark.parametrize("retain", ["others", "all"])
def test_clean_sequences_to_retain_teach_nothing_of_the_memories(memorizing_backdoor, memorizing_noise, retain):
    for trained in (memorizing_backdoor, memorizing_noise):
        task = unlearning_task(trained.model, trained.dataset, TaskSettings(holdout_fraction=0.3, retain=retain))
        usual, planted = (
            unlearning_task(trained.model, trained.dataset, TaskSettings()),
            trained.dataset.artifacts.planted,
        )
        clean = rows_of(task.clean_retain("--attack relearn_clean"))
        if trained is memorizing_backdoor:  # also of the triggers that are not memorized
            assert clean == rows_of(usual.retain) - rows_of(planted) and len(usual.forget) < len(planted)
        else:
            assert clean == rows_of(usual.retain)
    nothing = replace(task, clean=torch.zeros(len(task.retain), dtype=torch.bool))
    with pytest.raises(
        UserError, match=r"^--attack relearn_clean: all \d+ sequences to retain teach [^\n]*--retain others"
    ):
        nothing.clean_retain("--attack relearn_clean")


def test_triggers_where_there_are_none(memorizing_noise):
    with pytest.raises(UserError, match="--forget test: this data has no backdoor"):
        unlearning_task(memorizing_noise.model, memorizing_noise.dataset, TaskSettings(forget="test"))


def test_planted_rows_are_retained_only_where_they_are_known(memorizing_noise):
    """Of a production model the rows are those to retain, whatever it was trained on: --retain all changed nothing."""
    dataset = memorizing_noise.dataset
    others = dataset.order[~torch.isin(dataset.order, dataset.artifact_ids)]
    production = replace(dataset, order=others)
    assert len(unlearning_task(memorizing_noise.model, production, TaskSettings()).retain) == len(others.unique())
    with pytest.raises(
        UserError, match="^--retain all: of this model's training rows only others are known; use --retain"
    ):
        unlearning_task(memorizing_noise.model, production, TaskSettings(retain="all"))
