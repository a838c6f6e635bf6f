"""Grids, and that jobs know the records of the real scripts."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
from small import ROOT, SMALL_DATA, in_process

from tinymem import cli
from tinymem.data.settings import DataSettings
from tinymem.data.token_sets import TokenSet, read_token_set, write_token_set
from tinymem.errors import UserError
from tinymem.localize.registry import METHODS, find_methods
from tinymem.localize.task import TaskSettings
from tinymem.models.tinymem import ModelSettings
from tinymem.options import as_flags
from tinymem.regularizers.registry import switched_on
from tinymem.sweeps import hp_grid, jobs
from tinymem.sweeps.grid import combinations
from tinymem.sweeps.job import missing
from tinymem.training.finetune import FinetuneSettings
from tinymem.training.settings import RunSettings, TrainingSettings

RUN = RunSettings(
    DataSettings(**SMALL_DATA), ModelSettings(1, 2, 16), TrainingSettings(2, 1, 32, dtype="bfloat16"),
    switched_on({"spectral_reg": True, "lam": 0.1}),
)  # fmt: skip


@pytest.fixture
def common(tmp_path):
    return jobs.Common(str(tmp_path / "data"), "cpu")


def do(job) -> None:
    in_process(*job.command(missing(job)))


def test_combinations():
    grid = {"a": (1, 2), "both": ({"b": 3, "c": 4}, {"b": 5, "c": 6})}
    assert combinations(grid) == [
        {"a": 1, "b": 3, "c": 4}, {"a": 1, "b": 5, "c": 6}, {"a": 2, "b": 3, "c": 4}, {"a": 2, "b": 5, "c": 6},
    ]  # fmt: skip
    assert combinations({}) == [{}] and combinations({"a": ()}) == []


def test_as_flags_is_the_inverse_of_collect():
    settings = TrainingSettings(epochs=7, lr=1.0000000000000002e-3, dtype="bfloat16")
    parser = cli.Parser("test")
    cli.add_options(parser, TrainingSettings)
    assert cli.collect(TrainingSettings, parser.parse_args(as_flags(settings))) == settings
    assert as_flags(settings, leave_out=("epochs", "lr")) == ["--dtype=bfloat16"]


def asked(*methods, small=True, ratios=None, large_model=False):
    arguments = argparse.Namespace(methods=list(methods), ratios=ratios, small=small)
    return hp_grid.asked_grid(arguments, large_model)


@pytest.mark.parametrize("small", [False, True])
def test_every_method_has_a_grid_of_allowed_values(small):
    found = asked("all", small=small)
    assert {method.name for method, _ in found} == set(METHODS)
    for method, hp in found:
        grid = hp_grid.grid_of(method, hp_grid.SMALL if small else hp_grid.STUDY)
        assert method.strengths(hp) == grid[method.strength] and 1 <= len(grid[method.strength]) <= 8


def test_the_study_s_grid():
    found = asked("hard_concrete", "balanced_subnet", small=False)
    assert len(found) == 3 + 3 * 10 and sum(len(hp.ratio) for _, hp in found) == 3 * 4 + 30 * 8
    assert {hp.epochs for _, hp in found} == {1, 10, 20}
    weights = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.25, 0.3)
    grid = {"ratio": weights, "epochs": (1, 10, 20), "loss_weighting": (0.05, *(n / 10 for n in range(1, 10)))}
    assert hp_grid.grid_of(METHODS["balanced_subnet"]) == grid
    assert hp_grid.grid_of(METHODS["greedy"]) == {"ratio": (1e-5,)}


def test_choosing_from_the_grid():
    assert [method.name for method in find_methods(["hc", "hard_concrete", "act"])] == ["hard_concrete", "activations"]
    assert [method.name for method in find_methods(["all"])] == list(METHODS)
    with pytest.raises(UserError, match="--methods magic: must be one of zero_out"):
        asked("act", "magic")
    with pytest.raises(UserError, match="--ratios 2.0"):
        asked("durable", ratios=[0.1, 2.0])
    changed = asked("subnet", "durable", ratios=[0.1, 0.1], large_model=True)
    assert [hp.ratio for _, hp in changed] == [(0.1,), (0.1,)]
    assert (changed[0][1].momentum, changed[0][1].weight_decay) == (0, 0)


def test_names_tell_runs_apart_but_not_longer_ones():
    longer = replace(RUN, training=replace(RUN.training, epochs=9, checkpoint_every=3))
    assert longer.name == RUN.name
    assert len({RUN.name, replace(RUN, regularizers=()).name, replace(RUN, training=TrainingSettings()).name}) == 3


def test_jobs_know_the_records_of_the_real_scripts(common, tmp_path):
    training = jobs.train_job(RUN, tmp_path, common)
    (checkpoint,) = jobs.checkpoints(RUN, tmp_path, [2])
    tuning = jobs.finetune_job(checkpoint, FinetuneSettings("extra", 1), common)
    grid = asked("slimming", "balanced_subnet", ratios=[0.05, 0.1])
    task = TaskSettings(unlearn_set_name="noise", microbatch=5)
    slimming, balanced = jobs.localize_jobs(checkpoint, grid, task, common)
    assert tuning.after == slimming.after == (training.name,)
    assert missing(training) == missing(tuning) == [None] and missing(slimming) == [0.05, 0.1]
    for job in (training, tuning, slimming):
        do(job)
        assert missing(job) == []
    assert missing(balanced) == [0.05, 0.1] and Path(slimming.folder) == tmp_path / RUN.name / "unlearned" / "epoch_2"
    longer = replace(RUN, training=replace(RUN.training, epochs=4, checkpoint_every=2))
    (same,) = jobs.checkpoints(longer, tmp_path, [2])  # of a training that is to go on, or has gone on since
    assert missing(jobs.finetune_job(same, FinetuneSettings("extra", 1), common)) == []
    assert missing(jobs.finetune_job(same, FinetuneSettings("extra", 2), common)) == [None]
    found = jobs.localize_jobs(jobs.find_checkpoint(checkpoint.path), grid, task, common)
    assert [missing(job) for job in found] == [[], [0.05, 0.1]]
    other = [replace(task, unlearn_seed=1), replace(task, holdout_fraction=0.5)]
    assert all(missing(jobs.localize_jobs(checkpoint, grid, another, common)[0]) for another in other)
    with pytest.raises(UserError, match="edited or fine-tuned"):
        jobs.find_checkpoint(Path(tuning.folder) / "epoch_1")


def test_nothing_memorized_is_nothing_to_do(common, tmp_path):
    run = replace(RUN, data=replace(RUN.data, num_noise=2, duplicate=False), training=TrainingSettings(1))
    do(jobs.train_job(run, tmp_path, common))
    (checkpoint,) = jobs.checkpoints(run, tmp_path, [1])
    grid = asked("durable", "greedy")
    durable, greedy = jobs.localize_jobs(checkpoint, grid, TaskSettings(), common)
    assert missing(durable) == [0.01, 0.05]
    do(durable)
    assert missing(durable) == missing(greedy) == []


def test_production_jobs_know_their_records(common, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import tiny_pythia

    monkeypatch.setattr(tiny_pythia, "STEPS", (1, 2))
    first, _ = tiny_pythia.make_tiny_pythia(tmp_path / "model")
    grid = [(METHODS["subnet"], METHODS["subnet"].hyper_parameters(ratio=(0.1, 0.2), epochs=1))]
    task = TaskSettings(unlearn_set_name="noise", holdout_fraction=0.25)
    (job,) = jobs.production_jobs(first, grid, task, common, tmp_path / "out")
    assert missing(job) == [0.1, 0.2]
    do(job)
    assert missing(job) == []
    tokens = read_token_set(first.data.random).tokens
    write_token_set(tmp_path / "other.safetensors", TokenSet(tokens.flip(0), {}))
    write_token_set(tmp_path / "same.safetensors", TokenSet(tokens, {}))
    for changed, done in [
        ({"num_test": 3}, False),
        ({"random": str(tmp_path / "other.safetensors")}, False),
        ({"random": str(tmp_path / "same.safetensors")}, True),
        ({"random": None, "corpus": "builtin"}, False),
    ]:
        model = replace(first, data=replace(first.data, **changed))
        (other,) = jobs.production_jobs(model, grid, task, common, tmp_path / "out")
        assert missing(other) == ([] if done else [0.1, 0.2]), changed
