import runpy
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.models.tinymem import ModelSettings
from tinymem.regularizers import l1
from tinymem.regularizers.protocol import Regularizer
from tinymem.regularizers.registry import REGULARIZERS, check_switches, switched_on
from tinymem.training.finetune import FinetuneSettings
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import RunSettings, TrainingSettings
from tinymem.training.train import training_step

SCRIPT = Path(__file__).parents[2] / "memorization_in_toy_models.py"


def test_every_setting_has_a_name_of_its_own():
    parts = (DataSettings, ModelSettings, TrainingSettings, FinetuneSettings, *(e.settings for e in REGULARIZERS))
    names = [field.name for part in parts for field in fields(part)]
    assert len(names) == len(set(names))


def test_all_are_off_by_default_and_no_part_of_the_identity():
    assert switched_on({}) == ()
    assert not {flag for entry in REGULARIZERS for flag in entry.flags} & RunSettings().flat().keys()


def test_flat_settings_come_back(tiny_settings):
    values = dict(spectral_reg=True, lam=0.2, l1_reg=1e-5, truncate_loss=True, dropc=0.01)
    settings = replace(tiny_settings, regularizers=switched_on(values))
    assert settings.flat().items() >= values.items()
    assert RunSettings.from_flat(settings.flat()) == settings


def test_a_setting_without_its_switch_is_refused():
    check_switches({"spectral_reg": True, "lam": 0.1})
    with pytest.raises(UserError, match="--lam 0.1: only with --spectral_reg"):
        check_switches({"lam": 0.1, "truncate_loss": True})


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--truncate_loss --dropc 1", "--dropc 1.0"),
        ("--truncate_loss --dropc -0.1", "--dropc -0.1"),
        ("--truncate_loss --truncation_window 0", "--truncation_window 0"),
        ("--example_tied_dropout --p_fixed 0.8 --p_mem 0.3", "--p_mem 0.3"),
        ("--spectral_reg --lam -1", "--lam -1.0"),
        ("--spectral_reg --lam nan", "--lam nan"),
        ("--l1_reg -1", "--l1_reg -1.0"),
        ("--goldfish --goldfish_k 1", "--goldfish_k 1"),
        ("--goldfish --goldfish_strategy none", "--goldfish_strategy"),
        ("--memorization_sinks --sinks_shared 1", "--sinks_shared 1.0"),
        ("--sinks_disjoint", "only with --memorization_sinks"),
        ("--p_mem 0.1", "only with --example_tied_dropout"),
        ("--spectral_reg 0 --lam 0.1", "only with --spectral_reg"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(flags, named, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags.split()])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert named in message and message.count("\n") == 1


def gradient(make_model, dataset, regularizers, microbatch: int = 16) -> torch.Tensor:
    model, training, ids = make_model(), TrainingSettings(train_microbatch=microbatch), torch.arange(16)
    for_model = [build(model) for build in regularizers]
    training_step(model, new_optimizer(model, training), dataset.sequences[ids], ids, training, for_model, None)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_l1_adds_the_sign_of_every_weight(make_model, tiny_dataset):
    settings = l1.Settings(l1_reg=0.01)
    with_l1 = gradient(make_model, tiny_dataset, [lambda model: l1.build(model, settings, 0)])
    signs = torch.cat([parameter.detach().sign().flatten() for parameter in make_model().parameters()])
    torch.testing.assert_close(with_l1 - gradient(make_model, tiny_dataset, []), 0.01 * signs)


@pytest.mark.parametrize("microbatch", [4, 16])
def test_a_loss_on_fewer_positions_needs_no_change_of_the_loop(make_model, tiny_dataset, microbatch):
    """As the goldfish loss: here every prediction but those of the token 1, averaged over what is left."""
    picky = Regularizer(positions=lambda tokens, loss_mask: loss_mask & (tokens[:, 1:] != 1))
    model, tokens = make_model(), tiny_dataset.sequences[:16].long()
    losses = torch.nn.functional.cross_entropy(model(tokens).logits[:, :-1].mT, tokens[:, 1:], reduction="none")
    losses[tokens[:, 1:] != 1].mean().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    actual = gradient(make_model, tiny_dataset, [lambda model: picky], microbatch)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)
