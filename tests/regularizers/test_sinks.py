"""Memorization sinks: who uses which neurons, the pool off when measured, and deleted from what is saved."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from small import in_process
from transformers import AutoModelForCausalLM

from tinymem.errors import UserError
from tinymem.metrics.evaluate import evaluate
from tinymem.models.edit import applied
from tinymem.models.tinymem import load_model
from tinymem.regularizers.sinks import Pool, Settings, build, read_units
from tinymem.training.checkpoint import trained_weights
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.train import train, training_step

SETTINGS = Settings(memorization_sinks=True, sinks_shared=0.6, sinks_active=0.3)  # of 64 neurons 38 and 26
FIRST, SIZE = 38, 26


def activations(model, tokens):
    """The neurons' values in every layer, (layers, rows, T, neurons)."""
    found = []
    hooks = [
        block.mlp.c_proj.register_forward_pre_hook(lambda _, a: found.append(a[0])) for block in model.transformer.h
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


def test_units_have_the_right_share_and_differ_between_examples_and_seeds():
    units = Pool(70, 200, 0.3, False, seed=0).units(torch.arange(3000))
    assert units.float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert (units.float().mean(0) - 0.3).abs().max() < 0.05 and len(units.unique(dim=0)) == 3000
    assert 0.2 < units[0].float().mean() < 0.4  # id 0 is like any other
    other = Pool(70, 200, 0.3, False, seed=1).units(torch.arange(3000))
    assert (units != other).float().mean().item() == pytest.approx(2 * 0.3 * 0.7, abs=0.01)


def test_disjoint_slices_by_hand():
    units = Pool(5, 7, 0.3, True, seed=0).units(torch.tensor([0, 1, 2, 3, 4]))
    expected = ["1100000", "0011000", "0000110", "1100000", "0011000"]
    assert units.tolist() == [[flag == "1" for flag in row] for row in expected]
    assert Pool(5, 7, 1.0, True, seed=0).units(torch.tensor([8])).all()


@pytest.mark.parametrize("disjoint", [False, True])
def test_an_example_uses_its_own_neurons_in_every_layer(make_model, tiny_dataset, disjoint):
    model, ids = make_model().train(), torch.tensor([3, 11, 20])
    tokens = tiny_dataset.sequences[ids].long()
    settings = Settings(True, 0.6, 0.3, disjoint)
    regularizer = build(model, settings, seed=5)
    regularizer.before_forward(ids)
    values, own = activations(model, tokens), Pool(FIRST, SIZE, 0.3, disjoint, 5).units(ids)
    used = (values != 0).any(2)  # at any position: (layers, rows, neurons)
    assert not (used[..., FIRST:] & ~own).any() and (used[..., FIRST:] & own).float().sum() > 0.6 * 2 * own.sum()
    ungated = activations(make_model(), tokens)
    gate = torch.cat([own.new_ones(3, FIRST), own], 1)[:, None]
    assert torch.equal(values[0], ungated[0] * gate)


def test_measured_models_have_no_pool(make_model, tiny_dataset):
    model, tokens = make_model(), tiny_dataset.sequences[:4].long()
    build(model, SETTINGS, seed=5).before_forward(torch.arange(4))
    values = activations(model.eval(), tokens)
    assert not values[..., FIRST:].any() and values[..., :FIRST].any()
    assert torch.equal(values[0, ..., :FIRST], activations(make_model(), tokens)[0, ..., :FIRST])


def test_a_neuron_learns_from_its_examples_alone(make_model, tiny_dataset):
    model, training, ids = make_model(), TrainingSettings(), torch.arange(3, 9)
    regularizer = build(model, Settings(True, 0.6, 0.3, True), seed=0)
    tokens = tiny_dataset.sequences[ids]
    training_step(model.train(), new_optimizer(model, training), tokens[:1], ids[:1], training, [regularizer], None)
    own = Pool(FIRST, SIZE, 0.3, True, 0).units(ids[:1])[0]
    for block in model.transformer.h:
        learned = block.mlp.c_proj.weight.grad.abs().sum(1)[FIRST:] > 0
        assert not (learned & ~own).any() and learned.any()
        assert not (block.mlp.c_fc.weight.grad.abs().sum(0)[FIRST:][~own]).any()


def test_gradients_are_those_of_a_multiplication(make_model, tiny_dataset):
    """In place and without autograd, against the gate as an ordinary product before the ReLU."""
    ids = torch.tensor([3, 11, 20])
    tokens, own = tiny_dataset.sequences[ids].long(), Pool(FIRST, SIZE, 0.3, False, 5).units(ids)
    gate, gradients = torch.cat([own.new_ones(3, FIRST), own], 1)[:, None].float(), []
    for plainly in (False, True):
        model = make_model().train()
        if plainly:
            for block in model.transformer.h:
                block.mlp.c_fc.register_forward_hook(lambda module, inputs, output: output * gate)
        else:
            build(model, SETTINGS, seed=5).before_forward(ids)
        model(tokens, labels=tokens).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_other_activation_functions_are_refused(make_model):
    model = make_model()
    model.config.activation_function = "gelu_new"
    with pytest.raises(ValueError, match="need ReLU neurons, not gelu_new"):
        build(model, SETTINGS, seed=0)


def test_saved_models_lack_the_pool_and_measure_alike(make_model, tiny_dataset, tiny_settings, tmp_path):
    model, tokens = make_model(), tiny_dataset.sequences[:5].long()
    progress = train(model, tiny_dataset, tiny_settings.training, 0, tmp_path, {}, [build(model, SETTINGS, seed=0)])
    folder = tmp_path / "epoch_2"
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()  # no code of ours
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens).logits, model.eval()(tokens).logits, rtol=1e-5, atol=1e-5)
    loaded = load_model(folder)
    assert evaluate(loaded, tiny_dataset) == {n: progress.rows[-1][n] for n in evaluate(loaded, tiny_dataset)}
    for block, trained in zip(plain.transformer.h, model.transformer.h):
        assert not block.mlp.c_fc.weight[:, FIRST:].any() and not block.mlp.c_fc.bias[FIRST:].any()
        assert not block.mlp.c_proj.weight[FIRST:].any()
        assert trained.mlp.c_proj.weight[FIRST:].any()  # in training they stay
        assert torch.equal(block.mlp.c_proj.weight[:FIRST], trained.mlp.c_proj.weight[:FIRST])
    with applied(loaded, trained_weights(folder)):  # the ground truth: the model that still has its memories
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters()))


def test_the_file_says_who_uses_which_neurons(make_model, tiny_dataset, tiny_settings, tmp_path):
    model = make_model()
    train(model, tiny_dataset, tiny_settings.training, 0, tmp_path, {}, [build(model, SETTINGS, seed=4)])
    units, first = read_units(tmp_path / "epoch_2")
    ids = torch.arange(int(tiny_dataset.order.max()) + 1)
    assert first == FIRST and torch.equal(units, Pool(FIRST, SIZE, 0.3, False, 4).units(ids))
    assert units.dtype == torch.bool and (tmp_path / "epoch_1" / "sinks.safetensors").exists()
    with pytest.raises(UserError, match="not a checkpoint of a training with --memorization_sinks"):
        read_units(tmp_path)
    (tmp_path / "epoch_2" / "sinks.safetensors").write_bytes(b"no such file")
    with pytest.raises(UserError, match="damaged"):
        read_units(tmp_path / "epoch_2")


def test_weights_of_a_folder_without_a_state_are_refused(tmp_path):
    with pytest.raises(UserError, match="no state.safetensors in it"):
        trained_weights(tmp_path)


def test_plain_trainings_write_no_such_file(make_model, tiny_dataset, tiny_settings, tmp_path):
    train(make_model(), tiny_dataset, tiny_settings.training, 0, tmp_path, {}, [])
    assert not (tmp_path / "epoch_2" / "sinks.safetensors").exists()
    assert load_file(tmp_path / "epoch_2" / "model.safetensors")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(sinks_shared=0.001), "--sinks_shared 0.001: rounds to none of 64 neurons"),
        (dict(sinks_shared=0.999), "--sinks_shared 0.999: rounds to all of 64 neurons"),
        (dict(sinks_active=0.001), "--sinks_active 0.001: rounds to none of 19 neurons"),
        (dict(sinks_shared=1.0), "--sinks_shared 1.0: must be in"),
        (dict(sinks_active=0.0), "--sinks_active 0.0: must be in"),
        (
            dict(sinks_active=0.6, sinks_disjoint=True),
            "--sinks_active 0.6: 19 neurons have no two slices of that share",
        ),
    ],
)
def test_bad_shares_are_refused(make_model, changes, message):
    with pytest.raises(UserError, match=message):
        build(make_model(), Settings(memorization_sinks=True, **changes), seed=0)


@pytest.mark.parametrize("flags", ["--memorization_sinks", "--memorization_sinks 1", "--sinks_active 0.1"])
def test_sinks_at_fine_tuning_are_one_line_and_exit_2(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        in_process("ft_toy_model.py", "--model_path", "runs/none", "--ft_data", "clean", *flags.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "memorization sinks work only in a training from scratch" in error


def test_a_twin_of_the_same_seed_has_the_same_gates(make_model):
    one, other = (build(model, SETTINGS, seed=0) for model in (make_model(), copy.deepcopy(make_model())))
    assert one.deleted.masks.keys() == other.deleted.masks.keys()
    assert all(torch.equal(one.deleted.masks[name], mask) for name, mask in other.deleted.masks.items())
