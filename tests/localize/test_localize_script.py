"""The localize script end to end, on a model that really memorizes."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import in_process, script, small_settings, train_small
from transformers import AutoModelForCausalLM

from tinymem.data.dataset import Artifacts
from tinymem.localize.registry import STUDY
from tinymem.localize.subject import Subject
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.metrics.evaluate import measure
from tinymem.metrics.memorization import memorized, percent
from tinymem.models.adapter import find_mlps
from tinymem.models.tinymem import load_model
from tinymem.records.table import load_records, shown_row

SCRIPT = "src/localize/localize_memorization.py"
QUICK = ["--epochs", 1, "--num_grads", 8, "--ig_steps", 2, "--greedy_k", 20]


@pytest.fixture(scope="module")
def every_method(memorizing_backdoor, tmp_path_factory):
    """The script run once with all methods; returns (folder, checkpoint, finished process)."""
    folder = tmp_path_factory.mktemp("localize")
    checkpoint = shutil.copytree(memorizing_backdoor.checkpoint, folder / "run" / "epoch_6")
    done = script(
        SCRIPT, "--model_path", checkpoint, "--localization_method", "study", "--ratio", 0.05, 0.2, *QUICK,
        "--output_dir", folder / "out", "--data_dir", folder / "data", "--holdout_fraction", 0.25, "--plot",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, checkpoint, done


def test_a_table_line_and_a_record_for_every_method_and_ratio(every_method):
    folder, _, done = every_method
    records = load_records(folder / "out")
    found = sorted((row["method"], row.get("ratio", 0)) for row in map(shown_row, records))
    assert found == sorted([("unedited", 0)] + [(name, ratio) for name in STUDY for ratio in (0.05, 0.2)])
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert [line for line in lines if line in STUDY] == [name for name in STUDY for _ in range(2)]
    for record in records:
        assert record["results"]["percent_memorized_held_out"] is not None
        assert record["forget"]["holdout_fraction"] == 0.25 and record["data"]["num_7"] == 250
    assert (folder / "out" / "unlearning.png").stat().st_size > 5000


def test_edited_models_differ_only_in_mlp_entries_that_became_zero(every_method):
    folder, checkpoint, _ = every_method
    original = load_file(checkpoint / "model.safetensors")
    mlp = {weight.name for block in find_mlps(load_model(checkpoint)) for weight in block.weights}
    models = list((folder / "out" / "models").iterdir())
    assert len(models) == 2 * len(STUDY)
    for path in models:
        edited = load_file(path / "model.safetensors")
        assert edited.keys() == original.keys()
        for name, tensor in edited.items():
            changed = tensor != original[name]
            assert tensor.shape == original[name].shape and (not changed.any() or name in mlp)
            assert tensor[changed].eq(0).all()
        assert AutoModelForCausalLM.from_pretrained(path).config.n_layer == 2


@pytest.mark.slow
def test_finished_runs_are_kept_and_scores_reused(memorizing_backdoor, tmp_path):
    checkpoint = shutil.copytree(memorizing_backdoor.checkpoint, tmp_path / "run" / "epoch_6")
    words = ["--model_path", checkpoint, "--localization_method", "durable", "--data_dir", tmp_path / "data"]
    words += ["--output_dir", tmp_path / "out", "--no_save_model"]

    def run(ratio: float) -> tuple[int, dict[str, int]]:
        """Return the number of records, and when each file of scores was written."""
        assert script(SCRIPT, *words, "--ratio", ratio).returncode == 0
        scores = (tmp_path / "run" / "scores").rglob("*.safetensors")
        return len(load_records(tmp_path / "out")), {path.name: path.stat().st_mtime_ns for path in scores}

    first = run(0.05)
    assert len(first[1]) == 1 and run(0.05) == first and run(0.15) == (first[0] + 1, first[1])


@pytest.mark.slow
def test_balanced_subnet_unlearns(memorizing_backdoor, tmp_path):
    checkpoint = shutil.copytree(memorizing_backdoor.checkpoint, tmp_path / "run" / "epoch_6")
    done = script(
        SCRIPT, "--model_path", checkpoint, "--localization_method", "random_greedy", "--ratio", 0.3, "--epochs", 12,
        "--batch_size", 16, "--data_dir", tmp_path / "data",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = {shown_row(r)["method"]: r["results"] for r in load_records(tmp_path / "run" / "unlearned" / "epoch_6")}
    before, after = results["unedited"], results["balanced_subnet"]
    assert before["percent_memorized_train"] > 50 and after["percent_memorized_train"] < 10
    assert after["mean_test_accuracy"] > before["mean_test_accuracy"] - 0.1
    assert 5 < after["percent_zeroed"] < 30


@pytest.mark.slow
def test_nothing_memorized_is_success(tmp_path):
    settings = small_settings(num_noise=2, duplicate=False)
    subject = train_small(settings, tmp_path / "run")
    assert not memorized(subject.model, subject.dataset.artifacts, 10).any()
    words = ["--model_path", subject.checkpoint, "--localization_method", "balanced_subnet"]
    done = script(SCRIPT, *words, "--data_dir", tmp_path / "data")
    assert done.returncode == 0 and "nothing to unlearn" in done.stdout, done.stderr


def test_a_flag_that_contradicts_the_checkpoint(memorizing_backdoor, tmp_path):
    words = ["--model_path", memorizing_backdoor.checkpoint, "--localization_method", "balanced_subnet"]
    refused = script(SCRIPT, *words, "--num_7", 20000, "--output_dir", tmp_path)
    assert (
        refused.returncode == 2
        and "--num_7 250, not with --num_7 20000" in refused.stderr
        and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize("name", ["mem", "noise", "seven", "two"])
def test_unlearn_held_out_and_retain_sets_are_disjoint(memorizing_backdoor, name):
    model, dataset = memorizing_backdoor.model, memorizing_backdoor.dataset
    settings = TaskSettings(unlearn_set_name=name, holdout_fraction=0.4, max_retain=50)
    task = unlearning_task(model, dataset, settings)
    sets = [
        {tuple(row.tolist()) for row in tokens} for tokens in (task.forget.planted, task.held_out.planted, task.retain)
    ]
    assert all(sets) and not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    size = len(task.forget) + len(task.held_out)
    assert len(task.held_out) == round(0.4 * size) and len(task.retain) == min(50, len(dataset.sequences) - size)
    expected = {"noise": len(dataset.artifacts), "seven": len(dataset.tasks["seven"]), "two": len(dataset.tasks["two"])}
    assert size == expected.get(name, int(memorized(model, dataset.artifacts, dataset.continuation).sum()))
    if name == "mem":
        assert memorized(model, task.forget, task.continuation).all()
    assert isinstance(task.forget, Artifacts) and task.forget.prompt_end.dtype == torch.long


def test_artifacts_like_their_clean_twin_are_unlearned_but_not_measured(memorizing_noise):
    model, dataset = memorizing_noise.model, memorizing_noise.dataset
    clean = dataset.artifacts.clean.clone()
    clean[:2] = dataset.artifacts.planted[:2]
    dataset = replace(dataset, artifacts=replace(dataset.artifacts, clean=clean))
    task = unlearning_task(model, dataset, TaskSettings(unlearn_set_name="noise"))
    told = int(dataset.measured(dataset.artifacts).sum())
    assert len(task.forget) == len(dataset.artifacts) > len(task.shown) == told > 0
    subject = Subject(model, task, partial(measure, dataset=dataset), {}, Path(), Path())
    expected = percent(memorized(model, dataset.artifacts, dataset.continuation)[dataset.measured(dataset.artifacts)])
    found = subject.measurement(subject.metrics)
    assert found.row["percent_memorized_shown"] == expected
    assert found.tensors()["percent_memorized_shown"].shape == (told,)


def test_a_plot_without_a_metric_of_quality_is_left_out(memorizing_backdoor, tmp_path, capsys):
    words = ["--model_path", memorizing_backdoor.checkpoint, "--localization_method", "activations", "--ratio", 0.05]
    in_process(
        SCRIPT, *words, "--metrics", "percent_memorized", "--plot", "--output_dir", tmp_path, "--data_dir", tmp_path
    )
    said = capsys.readouterr()
    assert "no unlearning.png" in said.err and "activations" in said.out and not (tmp_path / "unlearning.png").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["rmu", "--layer", 99], "--layer 99: must be below 2"),
        *(([name, "--layers", 99], "--layers 99: there is no layer 99") for name in ("kfac", "svd", "kfade")),
        (["kfac", "--factor_sequences", 1], "--factor_sequences: 1 retain sequences have"),
        (["repselect", "--dropped", 999], "--dropped 999: must be < "),
        (["npo", "--lora_rank", 2, "--lora_targets", "unknown"], "--lora_targets unknown: must be one or more of"),
        (["npo", "--lora_rank", 999], "--lora_rank 999: must be <= "),
        (
            ["durable", "--attack", "soft_prompt", "--soft_prompt.vectors", 1024],
            "--soft_prompt.vectors 1024: the model",
        ),
        (["durable", "--attack", "relearn", "--relearn.share", 1], "--attack relearn: sees all"),
        (["none_of_mine.py"], "--noisy 2.0: too much for 2 layers"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_before_it_is_measured(
    memorizing_backdoor, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none_of_mine.py").write_text(REFUSES)
    where = ["--model_path", memorizing_backdoor.checkpoint, "--output_dir", tmp_path / "out"]
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, *where, "--data_dir", tmp_path / "data", "--localization_method", *words)
    assert end.value.code == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / "out").glob("records/*"))


REFUSES = """
from tinymem.errors import UserError
from tinymem.options import option, settings

@settings
class HyperParameters:
    noisy: float = option(2.0, "noise")

def check(model, task, hp):
    raise UserError(f"--noisy {hp.noisy}: too much for {model.config.n_layer} layers")

def run(model, task, hp):
    raise AssertionError
"""
