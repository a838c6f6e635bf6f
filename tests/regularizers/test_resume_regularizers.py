"""Interrupted anywhere and started again, a regularized run ends with the same bytes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tinymem.cli.training import prepared_run
from tinymem.errors import UserError
from tinymem.regularizers.registry import build_regularizers, switched_on
from tinymem.training.checkpoint import STATE, latest_state
from tinymem.training.fit import Stopped
from tinymem.training.train import train

CHOICES = {
    "none": {},
    "spectral_norm": dict(spectral_reg=True, lam=0.1),
    "loss_truncation": dict(truncate_loss=True, dropc=0.2, truncation_window=40),
    "example_tied_dropout": dict(example_tied_dropout=True, p_fixed=0.3, p_mem=0.3),
    "l1": dict(l1_reg=1e-4),
    "goldfish": dict(goldfish=True, goldfish_k=3, goldfish_h=4),
    "memorization_sinks": dict(memorization_sinks=True, sinks_shared=0.5),
}
CHOICES["all"] = {name: value for choice in CHOICES.values() for name, value in choice.items()}


def session(make_model, dataset, settings, folder, stop_after=None):
    """One session of a run: to the end, or until so many steps of it are done."""
    model, steps = make_model(), []
    regularizers = build_regularizers(model, settings.regularizers, seed=0)
    train(
        model, dataset, settings.training, 0, folder, {}, regularizers,
        on_step=lambda progress, loss: steps.append(loss), should_stop=lambda: len(steps) == stop_after,
    )  # fmt: skip
    return load_file(folder / "state.safetensors")


@pytest.mark.parametrize("choice", CHOICES)
def test_resumed_runs_are_bit_identical(choice, make_model, tiny_dataset, tiny_settings, tmp_path):
    settings = replace(tiny_settings, regularizers=switched_on(CHOICES[choice]))
    straight = session(make_model, tiny_dataset, settings, tmp_path / "straight")
    for stop_after in (3, 1, 4):
        with pytest.raises(Stopped):
            session(make_model, tiny_dataset, settings, tmp_path / "stopped", stop_after)
    resumed = session(make_model, tiny_dataset, settings, tmp_path / "stopped")
    assert straight.keys() == resumed.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name
    weights = [load_file(tmp_path / part / "epoch_2" / "model.safetensors") for part in ("straight", "stopped")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    more = [sorted(file.name for file in (tmp_path / part / "epoch_2").iterdir()) for part in ("straight", "stopped")]
    assert more[0] == more[1]
    for name in set(more[0]) & {"sinks.safetensors"}:
        units = [(tmp_path / part / "epoch_2" / name).read_bytes() for part in ("straight", "stopped")]
        assert units[0] == units[1]


def test_without_its_state_a_run_goes_on_from_the_last_checkpoint(make_model, tiny_dataset, tiny_settings, tmp_path):
    straight = session(make_model, tiny_dataset, tiny_settings, tmp_path / "straight")
    with pytest.raises(Stopped):
        session(make_model, tiny_dataset, tiny_settings, tmp_path / "lost", stop_after=7)  # in the second epoch
    (tmp_path / "lost" / STATE).unlink()
    resumed = session(make_model, tiny_dataset, tiny_settings, tmp_path / "lost")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def test_the_last_checkpoint_is_the_one_with_the_highest_number(tmp_path):
    for n in (9, 10):
        (tmp_path / f"epoch_{n}").mkdir()
        (tmp_path / f"epoch_{n}" / STATE).touch()
    assert latest_state(tmp_path) == tmp_path / "epoch_10" / STATE


@pytest.mark.parametrize("choice", [name for name in CHOICES if name not in ("none", "all")])
def test_every_regularizer_changes_the_run(choice, make_model, tiny_dataset, tiny_settings, tmp_path):
    runs = [replace(tiny_settings, regularizers=switched_on(CHOICES[c])) for c in ("none", choice)]
    states = [session(make_model, tiny_dataset, run, tmp_path / str(i)) for i, run in enumerate(runs)]
    name = "model.transformer.h.0.mlp.c_fc.weight"
    assert not torch.equal(states[0][name], states[1][name])


@pytest.mark.parametrize("first, second", [("none", "l1"), ("l1", "none"), ("spectral_norm", "loss_truncation")])
def test_a_folder_of_another_regularizer_is_refused(first, second, tiny_settings, tmp_path):
    flat = [replace(tiny_settings, regularizers=switched_on(CHOICES[c])).flat() for c in (first, second)]
    with prepared_run(tmp_path, flat[0], force=False):
        (tmp_path / "metrics.json").write_text("[]")  # the run has begun
    with prepared_run(tmp_path, {**flat[0], "epochs": 9}, force=False):
        pass
    with pytest.raises(UserError, match="give another --output_dir"), prepared_run(tmp_path, flat[1], force=False):
        pass
