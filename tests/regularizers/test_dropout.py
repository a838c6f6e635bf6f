import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from tinymem.errors import UserError
from tinymem.metrics.evaluate import evaluate
from tinymem.models.tinymem import load_model
from tinymem.regularizers.dropout import Settings, build, example_masks, random_bits
from tinymem.training.checkpoint import save_model
from tinymem.training.train import train

SETTINGS = Settings(example_tied_dropout=True, p_fixed=0.25, p_mem=0.4)


def test_bits_are_splitmix64():
    """Against arithmetic on Python's unbounded integers."""

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden, seed, ids, counters = 0x9E3779B97F4A7C15, 5, [0, 1, 77, 123456], [0, 1, 127]
    bits = random_bits(torch.tensor(ids), seed, torch.tensor(counters))
    for row, i in zip(bits.tolist(), ids):
        key = mix((mix(seed * golden % 2**64) + (i + 1) * golden) % 2**64)
        assert row == [mix((key + (c + 1) * golden) % 2**64) >> 32 for c in counters]


def test_masks_are_the_same_in_another_process_and_any_batch():
    code = (
        "import torch; from tinymem.regularizers.dropout import Settings, example_masks;"
        "print(example_masks(torch.arange(50), 7, 64, Settings(True, 0.25, 0.4)).long().tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = example_masks(torch.arange(50), 7, 64, SETTINGS)
    assert other.strip() == str(here.long().tolist())
    shuffled = torch.randperm(50)
    assert torch.equal(example_masks(shuffled, 7, 64, SETTINGS), here[shuffled])


def test_masks_differ_between_examples_and_seeds_and_have_the_right_fraction():
    ids = torch.arange(4000)
    masks = example_masks(ids, 0, 128, SETTINGS)
    shared, memory = masks[:, :32], masks[:, 32:].float()
    assert shared.all()
    assert len(memory.unique(dim=0)) == len(ids)
    assert memory.mean().item() == pytest.approx(0.4, abs=0.005)
    assert (memory.mean(0) - 0.4).abs().max() < 0.05  # every channel
    assert abs(torch.corrcoef(memory.T).fill_diagonal_(0)).max() < 0.1
    assert (example_masks(ids, 1, 128, SETTINGS) != masks).float().mean().item() == pytest.approx(
        0.75 * 2 * 0.4 * 0.6, abs=0.01
    )


def test_extreme_fractions():
    ids = torch.arange(100)
    assert example_masks(ids, 0, 16, Settings(True, p_fixed=0.5, p_mem=0.0)).sum(1).tolist() == [8] * 100
    assert example_masks(ids, 0, 16, Settings(True, p_fixed=1.0, p_mem=0.0)).all()


@pytest.mark.parametrize("p_fixed, p_mem", [(0.95, 0.1), (0.0, 0.1), (0.2, -0.1), (1.2, 0.1)])
def test_bad_fractions_are_refused(p_fixed, p_mem):
    with pytest.raises(UserError):
        Settings(True, p_fixed, p_mem)


def test_a_share_that_rounds_to_no_channel_is_refused(make_model):
    with pytest.raises(UserError, match="--p_fixed 0.01"):
        build(make_model(), Settings(True, p_fixed=0.01), seed=0)


def block_inputs_and_outputs(model, tokens):
    """What goes into every block behind its gate, and what comes out, each (layers, rows, T, width)."""
    inputs, outputs = [], []
    hooks = [block.ln_1.register_forward_pre_hook(lambda _, a: inputs.append(a[0])) for block in model.transformer.h]
    hooks += [block.register_forward_hook(lambda _, a, out: outputs.append(out)) for block in model.transformer.h]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(inputs), torch.stack(outputs)


def test_training_masks_channels_not_positions_in_every_block(make_model, tiny_dataset):
    model = make_model().train()
    ids = torch.tensor([3, 11, 20])
    regularizer = build(model, SETTINGS, seed=5)
    regularizer.before_forward(ids)
    inputs, outputs = block_inputs_and_outputs(model, tiny_dataset.sequences[ids].long())
    mask = example_masks(ids, 5, 16, SETTINGS)
    expected = mask[None, :, None, :].expand(inputs.shape)
    assert torch.equal(inputs != 0, expected)  # the same channels at all positions of all blocks
    assert torch.equal(inputs[1], outputs[0] * mask[:, None, :])


def test_evaluation_drops_memory_and_scales_shared_channels(make_model, tiny_dataset):
    model = make_model()
    tokens = tiny_dataset.sequences[:3].long()
    build(model, SETTINGS, seed=5).before_forward(torch.arange(3))
    inputs, outputs = block_inputs_and_outputs(model.eval(), tokens)
    assert (inputs[..., 4:] == 0).all()
    torch.testing.assert_close(inputs[1, ..., :4], outputs[0, ..., :4] * (0.25 + 0.4) / 0.25)


def test_saved_model_has_the_evaluation_behaviour(make_model, tiny_dataset, tiny_settings, tmp_path):
    model, run = make_model(), tmp_path / "run"
    regularizers = [build(model, SETTINGS, seed=0)]
    progress = train(model, tiny_dataset, tiny_settings.training, 0, run, {}, regularizers)
    tokens = tiny_dataset.sequences[:5].long()
    with torch.no_grad():
        logits = model.eval()(tokens).logits
        loaded = load_model(run / "epoch_2")
        assert torch.equal(loaded(tokens).logits, logits)
        copied = load_model(save_model(tmp_path / "copy", loaded, {}))  # as edited models are saved
        assert torch.equal(copied(tokens).logits, logits)
        plain = AutoModelForCausalLM.from_pretrained(run / "epoch_2").eval()
        assert plain.state_dict().keys() == model.state_dict().keys()
        assert not torch.allclose(plain(tokens).logits, logits, atol=1e-3)  # without the gate: see channel_gate.py
    measured = {name: progress.rows[-1][name] for name in evaluate(loaded, tiny_dataset)}
    assert measured == evaluate(loaded, tiny_dataset)  # what was measured in training is the evaluation behaviour


def test_models_without_it_are_opened_without_a_gate(make_model, tmp_path):
    folder = save_model(tmp_path / "model", make_model(), {})
    assert not any(block._forward_pre_hooks for block in load_model(folder).transformer.h)
