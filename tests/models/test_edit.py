"""Edits: applied within a block, put back to the bit, on any weight and however it is stored."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from tiny import new_model
from transformers import GPT2Config, GPT2LMHeadModel

from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Lazy, Weights, Zeros, applied, apply, describe, reversible, stored, stored_model
from tinymem.models.fingerprint import weights_fingerprint


def gpt2(**changes):
    torch.manual_seed(0)
    config = dict(vocab_size=14, n_positions=12, n_embd=8, n_layer=2, n_head=2, initializer_range=0.2) | changes
    return GPT2LMHeadModel(GPT2Config(**config)).eval()


def bits(model):
    return {name: tensor.contiguous().clone().view(torch.uint8) for name, tensor in model.state_dict().items()}


def same(model, before):
    now = bits(model)
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)


MATRIX, BIAS, EMBEDDING = "transformer.h.0.mlp.c_fc.weight", "transformer.h.1.mlp.c_proj.bias", "transformer.wte.weight"


def random_masks(model):
    """Masks of a matrix (out, in), of a bias, and of the embedding as stored."""
    shapes = {MATRIX: (32, 8), BIAS: (8,), EMBEDDING: (14, 8)}
    return {name: torch.rand(shape) < 0.4 for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fails", [False, True])
def test_every_bit_is_put_back(dtype, fails):
    model = gpt2().to(dtype)
    view = find_mlps(model)[0].inputs[0].view()
    view[0, :3] = torch.tensor([float("nan"), -0.0, float("inf")])
    before, masks = bits(model), random_masks(model)
    masks[MATRIX][0, :3] = True
    new = {name: torch.randn_like(model.get_parameter(name)) for name in (MATRIX, BIAS)}
    with pytest.raises(KeyboardInterrupt) if fails else torch.no_grad():
        with applied(model, Zeros(masks), Weights(new)) as inside:
            assert inside is model and torch.equal(model.get_parameter(MATRIX), new[MATRIX])
            assert (model.get_parameter(EMBEDDING)[masks[EMBEDDING]] == 0).all()
            if fails:
                raise KeyboardInterrupt
    assert same(model, before)


def test_masks_are_seen_as_out_in_however_the_matrix_is_stored():
    model, masks = gpt2(), {MATRIX: torch.rand(32, 8) < 0.5}
    expected = model.get_parameter(MATRIX).detach().T.masked_fill(masks[MATRIX], 0)  # Conv1D stores (in, out)
    apply(model, Zeros(masks))
    assert torch.equal(model.get_parameter(MATRIX).T, expected)


def test_edits_nest_an_attack_sees_the_edited_model():
    model, mask = gpt2(), {MATRIX: torch.ones(32, 8, dtype=torch.bool)}
    before = bits(model)
    with applied(model, Zeros(mask)):
        edited = bits(model)
        with applied(model, Weights({MATRIX: model.get_parameter(MATRIX).detach() + 1})):
            assert (model.get_parameter(MATRIX) == 1).all()
        assert same(model, edited)
    assert same(model, before)


def test_tied_weights_change_together_and_come_back():
    model, before = gpt2(), bits(gpt2())
    with applied(model, Zeros({"lm_head.weight": torch.ones(14, 8, dtype=torch.bool)}), Zeros(random_masks(model))):
        assert (model.get_input_embeddings().weight == 0).all()
    assert same(model, before)


def test_a_weight_that_is_not_contiguous():
    model, mask = gpt2(), {EMBEDDING: torch.rand(14, 8) < 0.5}
    model.transformer.wte.weight.data = model.transformer.wte.weight.data.T.contiguous().T
    expected = model.transformer.wte.weight.detach().masked_fill(mask[EMBEDDING], 0)
    before = bits(model)
    with applied(model, Zeros(mask)):
        assert torch.equal(model.transformer.wte.weight, expected)
    assert same(model, before)


@pytest.mark.parametrize("edit, error", [
    (lambda one: Zeros({MATRIX: torch.ones(32, 8).bool(), "nonsense": one}), KeyError),
    (lambda one: Weights({BIAS: torch.zeros(8), "transformer.h.7.attn.bias": one}), KeyError),
    (lambda one: Zeros({"transformer.h.0.attn": one}), KeyError),
    (lambda one: Zeros({BIAS: torch.ones(8).bool(), MATRIX: torch.ones(8, 32).bool()}), ValueError),
    (lambda one: Weights({BIAS: torch.zeros(8), MATRIX: torch.zeros(32, 8)}), ValueError),
])  # fmt: skip
def test_what_a_model_does_not_have_leaves_it_as_it_was(edit, error):
    model, before = gpt2(), bits(gpt2())
    with pytest.raises(error), applied(model, edit(torch.ones(1).bool())):
        pass
    assert same(model, before)


def test_lazy_masks_are_made_one_at_a_time():
    model, masks, made = gpt2(), random_masks(gpt2()), []
    lazy = Lazy({name: lambda name=name: made.append(name) or masks[name] for name in masks})
    with applied(model, Zeros(lazy)):
        found = bits(model)
    assert made == list(masks)
    apply(model, Zeros(masks))
    assert same(model, found)


def test_weights_on_disk_are_rounded_to_the_model_s_type(tmp_path):
    model, values = gpt2().bfloat16(), {MATRIX: torch.randn(8, 32), BIAS: torch.randn(8)}
    save_file(values, tmp_path / "edit.safetensors")
    edit = Weights(stored(tmp_path / "edit.safetensors"))
    assert set(edit.values) == set(values) and len(edit.values) == 2
    with applied(model, edit):
        for name, value in values.items():
            assert torch.equal(model.get_parameter(name), value.bfloat16())


def test_what_is_trained_in_place_is_put_back():
    model, before = gpt2(), bits(gpt2())
    with reversible() as changes:
        for parameter in model.parameters():
            changes.keep(parameter)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.arange(12)[None]).logits.sum().backward()
        optimizer.step()
        assert not same(model, before)
    assert same(model, before)


def test_how_large_an_edit_is():
    model = gpt2()
    total = sum(parameter.numel() for parameter in model.parameters())  # the tied embedding once
    norm = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).norm()
    bias = model.get_parameter(BIAS)
    with torch.no_grad():
        bias.copy_(torch.tensor([0.0, 0, 3, 4, 0, 0, 0, 0]))
    norm = (norm**2 + 25).sqrt()
    mask = torch.tensor([True, True, False, True, False, False, False, False])
    zeros = describe(model, Zeros({BIAS: mask}))  # two of the three were zero before
    assert zeros == pytest.approx(
        {"percent_zeroed": 300 / total, "percent_changed": 100 / total, "relative_change": 4 / norm.item()}
    )
    new = torch.tensor([1.0, 0, 0, 4, 0, 0, 0, 0])
    assert describe(model, Weights({BIAS: new})) == pytest.approx(
        {"percent_zeroed": 100 / total, "percent_changed": 200 / total, "relative_change": 10**0.5 / norm.item()}
    )
    same_values = copy.deepcopy({name: p.detach() for name, p in model.named_parameters()})
    assert describe(model, Weights(same_values)) == dict.fromkeys(zeros, 0.0)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
def test_a_saved_model_is_read_under_the_names_that_it_is_stored_by(architecture, tmp_path):
    """transformers stores the output layer of GPT-NeoX under another name than the model has."""
    model, other = new_model(architecture), new_model(architecture, seed=1)
    other.save_pretrained(tmp_path)
    saved, before = stored_model(tmp_path, model, weights_fingerprint(other)), bits(model)
    assert describe(model, saved)["percent_changed"] > 50
    with applied(model, saved):
        assert same(model, bits(other))
    assert same(model, before)
