"""Attacks that change weights without training."""

import pytest
import torch

from tinymem.attacks import interpolate, prune, weight_noise
from tinymem.models.adapter import linear_weights
from tinymem.models.edit import Changes, Zeros, applied


def test_pruning_by_hand():
    matrix = torch.tensor([[4.0, 0.0, -1.0], [0.5, -2.0, 0.0]])
    assert prune.pruned(matrix, 0.5).tolist() == [[4.0, 0.0, 0.0], [0.0, -2.0, 0.0]]  # two of four; zeros do not count
    assert prune.pruned(matrix, 0.1).equal(matrix) and not prune.pruned(torch.zeros(2, 2), 0.5).any()


def test_noise_has_the_requested_size_and_is_the_same_in_every_call():
    matrix = torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    noise = weight_noise.noise(matrix, 0.1, 5)
    assert noise.std().item() == pytest.approx(0.1 * matrix.std().item(), rel=0.02)
    assert noise.equal(weight_noise.noise(matrix, 0.1, 5)) and not noise.equal(weight_noise.noise(matrix, 0.1, 6))


def test_noise_differs_between_layers_and_leaves_the_output_layer(planted, subject):
    edit = weight_noise.attack(planted.model, subject.task, weight_noise.HyperParameters(), 0.1)
    first, second = (f"transformer.h.{layer}.mlp.c_fc.weight" for layer in (0, 1))
    weights = linear_weights(planted.model)
    added = [edit.values[name] - weights[name].parameter for name in (first, second)]
    assert edit.values[first].equal(edit.values[first])  # described and applied alike
    assert not torch.allclose(added[0] / added[0].std(), added[1] / added[1].std())
    assert "lm_head.weight" not in edit.values and len(edit.values) == 8


def test_changes_know_the_weights_before():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    layer = model[0]
    before = layer.weight.detach().clone()
    changes = Changes()
    Zeros({"0.weight": torch.tensor([[True, False, False], [False, False, True]])}).apply(model, changes)
    changes.replace(layer.bias, torch.ones(2))
    assert changes.before(layer.weight).equal(before) and (layer.weight == 0).sum() == 2
    changes.undo()
    assert layer.weight.equal(before)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_interpolation_returns_to_the_original(planted, subject, alpha):
    from dataclasses import replace

    model, name = planted.model, "transformer.h.1.mlp.c_proj.weight"
    before = model.get_parameter(name).detach().clone()
    task = replace(subject.task, original=lambda key: before if key == name else model.get_parameter(key).detach())
    mask = torch.zeros(before.T.shape, dtype=torch.bool)
    mask[3] = True
    with applied(model, Zeros({name: mask})):
        edited = model.get_parameter(name).detach().clone()
        with applied(model, interpolate.attack(model, task, interpolate.HyperParameters(), alpha)):
            assert torch.allclose(model.get_parameter(name), (1 - alpha) * edited + alpha * before, atol=1e-7)
            assert alpha != 1 or model.get_parameter(name).equal(before)
    assert not interpolate.attack(
        model, subject.task, interpolate.HyperParameters(), 0.5
    ).values  # nothing to return to
