"""Twins: found by themselves beside their runs, refused when they are another run's, named in the training's record."""

import json
import shutil
from dataclasses import replace

import pytest
from small import SMALL_DATA, in_process, small_settings, train_small

from tinymem.errors import UserError
from tinymem.records.table import load_records
from tinymem.training.twin import check_twin, find_twin, twin_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, its twin and the twin of another seed: folders of checkpoints in runs beside each other."""
    folder = tmp_path_factory.mktemp("runs")
    settings = small_settings()
    settings = replace(settings, training=replace(settings.training, epochs=1, checkpoint_every=1))
    other = replace(settings, data=replace(settings.data, seed=1))
    runs = {"run": settings, "twin": twin_of(settings), "stranger": twin_of(other)}
    return settings, {name: train_small(run, folder / name).checkpoint for name, run in runs.items()}


def test_a_twin_is_found_beside_its_run(trained, tmp_path):
    settings, place = trained
    assert find_twin(place["run"], settings, 1).samefile(place["twin"])
    assert find_twin(place["twin"], twin_of(settings), 1).samefile(place["run"])
    assert find_twin(place["run"], settings, 2) is None
    assert check_twin(place["twin"], settings, 1) == place["twin"]
    other_rounding = replace(settings, training=replace(settings.training, dtype="bfloat16", train_microbatch=8))
    assert find_twin(place["run"], other_rounding, 1).samefile(place["twin"])


def test_published_models_stand_beside_each_other(trained, tmp_path):
    settings, place = trained
    for name in ("run", "twin", "stranger"):
        shutil.copytree(place[name], tmp_path / name, ignore=shutil.ignore_patterns("state.safetensors"))
    assert find_twin(tmp_path / "run", settings, 1).samefile(tmp_path / "twin")
    shutil.rmtree(tmp_path / "twin")
    assert find_twin(tmp_path / "run", settings, 1) is None


def test_another_runs_twin_is_refused(trained, tmp_path):
    settings, place = trained
    with pytest.raises(UserError, match="--twin_model .*: no twin of this checkpoint; --seed is 1, not 0"):
        check_twin(place["stranger"], settings, 1)
    with pytest.raises(UserError, match="no twin of this checkpoint; it was trained without --twin"):
        check_twin(place["run"], settings, 1)
    with pytest.raises(UserError, match="no twin of this checkpoint, which was itself trained with --twin"):
        check_twin(place["twin"], twin_of(settings), 1)
    with pytest.raises(
        UserError, match="not a TinyMem checkpoint .*prod_grad.py .tinymem unlearn-lm.*, which takes any model"
    ):
        check_twin(tmp_path, settings, 1)


def test_a_twin_with_a_regularizer_of_its_own_is_refused(trained, tmp_path):
    settings, place = trained
    other = shutil.copytree(place["twin"], tmp_path / "twin")
    details = json.loads((other / "tinymem.json").read_text())
    details["settings"]["l1_reg"] = 1e-6
    (other / "tinymem.json").write_text(json.dumps(details))
    with pytest.raises(UserError, match="no twin of this checkpoint; --l1_reg is 1e-06, not None"):
        check_twin(other, settings, 1)
    assert find_twin(place["run"], settings, 1).samefile(place["twin"])


def test_a_training_names_its_twin(tmp_path):
    words = [f"--{name}={value}" for name, value in SMALL_DATA.items() if name != "duplicate"]
    words += ["--n_layers=1", "--n_embd=16", "--n_heads=1", "--epochs=1", f"--data_dir={tmp_path}"]
    for name, flags in (("run", []), ("twin", ["--twin"])):
        in_process("memorization_in_toy_models.py", *words, *flags, f"--output_dir={tmp_path / name}")
    run, twin = (load_records(tmp_path / name)[0] for name in ("run", "twin"))
    digests = {name: next((tmp_path / name / "records").glob("*.json")).stem for name in ("run", "twin")}
    assert run["results"]["twin"] == digests["twin"] and twin["results"]["twin"] == digests["run"]
    assert twin["data"]["twin"] is True and "twin" not in run["data"]
    assert twin["results"]["percent_memorized_train"] is not None
