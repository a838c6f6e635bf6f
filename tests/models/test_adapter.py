import pytest
import torch
from architectures import ARCHITECTURES, GATED, REFUSED, SIZES, build

from tinymem.errors import UserError
from tinymem.localize.ranking import neuron_masks
from tinymem.models.adapter import find_blocks, find_mlps
from tinymem.models.edit import Zeros, applied
from tinymem.models.tinymem import load_model

NAMED = [  # architecture, block, W_in, W_out, inner_dim
    ("gpt2", "transformer.h.1", "mlp.c_fc", "mlp.c_proj", 64),
    ("gptj", "transformer.h.1", "mlp.fc_in", "mlp.fc_out", 64),
    ("gpt_neox", "gpt_neox.layers.1", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", 24),
    ("phi", "model.layers.1", "mlp.fc1", "mlp.fc2", 24),
    ("opt", "model.decoder.layers.1", "fc1", "fc2", 24),
]
EVERY = list(ARCHITECTURES)
TOKENS = torch.arange(10).view(2, 5)


@pytest.mark.parametrize("architecture, block, up, down, inner", NAMED)
def test_plain_mlps(architecture, block, up, down, inner):
    model = build(architecture)
    mlps = find_mlps(model)
    assert [mlp.layer for mlp in mlps] == [0, 1]
    assert [(w.name, tuple(w.view().shape)) for w in mlps[1].weights] == [
        (f"{block}.{up}.weight", (inner, 16)),
        (f"{block}.{down}.weight", (16, inner)),
        (f"{block}.{up}.bias", (inner,)),
        (f"{block}.{down}.bias", (16,)),
    ]
    assert mlps[1].inner_dim == inner
    assert mlps[1].down is model.get_submodule(f"{block}.{down}")


@pytest.mark.parametrize("architecture", GATED)
def test_gated_mlps(architecture):
    model = build(architecture)
    mlp = find_mlps(model)[1]
    assert [(w.name, tuple(w.view().shape)) for w in mlp.weights] == [
        ("model.layers.1.mlp.gate_proj.weight", (24, 16)),
        ("model.layers.1.mlp.up_proj.weight", (24, 16)),
        ("model.layers.1.mlp.down_proj.weight", (16, 24)),
    ]
    assert len(mlp.inputs) == 2 and mlp.biases == () and mlp.output_bias is None
    assert mlp.down is model.model.layers[1].mlp.down_proj


def test_a_model_for_text_and_images_is_edited_in_its_text():
    """Also where its images pass through as many blocks, which come first among its modules."""
    images = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16)
    sizes = dict(text_config=SIZES | {"vocab_size": 31}, vision_config=images | {"patch_size": 8})
    model = build("gemma3", sizes | {"mm_tokens_per_image": 4})
    name, blocks = find_blocks(model)
    assert name == "model.language_model.layers" and blocks is model.model.language_model.layers
    assert len(model.model.vision_tower.encoder.layers) == len(blocks)
    assert find_mlps(model)[1].down is blocks[1].mlp.down_proj


def test_gate_and_up_in_one_matrix():
    mlp = find_mlps(build("phi3"))[1]
    assert [(w.name, tuple(w.view().shape)) for w in mlp.weights] == [
        ("model.layers.1.mlp.gate_up_proj.weight", (48, 16)),
        ("model.layers.1.mlp.down_proj.weight", (16, 24)),
    ]
    masks = neuron_masks([mlp], [torch.arange(24.0)], 1 / 24)
    assert masks["model.layers.1.mlp.gate_up_proj.weight"].any(1).nonzero().flatten().tolist() == [23, 47]


@pytest.mark.parametrize("architecture", EVERY)
def test_names_are_those_of_the_state_dict_and_a_dropped_neuron_is_silent(architecture):
    model = build(architecture)
    mlps, state = find_mlps(model), model.state_dict()
    for weight in (weight for mlp in mlps for weight in mlp.weights):
        assert state[weight.name].data_ptr() == weight.parameter.data_ptr() == weight.view().data_ptr()
    seen = []
    hook = mlps[1].down.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    scores = [torch.zeros(mlp.inner_dim) for mlp in mlps]
    scores[1][7] = 1
    with torch.no_grad(), applied(model, Zeros(neuron_masks(mlps, scores, 1 / mlps[1].inner_dim))):
        model(TOKENS)
    hook.remove()
    assert not seen[0][..., 7].any() and seen[0].any()


@pytest.mark.parametrize("architecture", EVERY)
def test_edits_land_where_they_should_and_a_saved_folder_has_them(architecture, tmp_path):
    model = build(architecture)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    weights = [weight for mlp in find_mlps(model) for weight in mlp.weights]
    masks = {weight.name: torch.rand(weight.view().shape, generator=generator) < 0.3 for weight in weights}
    stored = {weight.name: weight.view(masks[weight.name]) for weight in weights}  # as the tensor is stored
    with applied(model, Zeros(masks)):
        for name, tensor in model.state_dict().items():
            dropped = stored.get(name, torch.zeros_like(tensor, dtype=torch.bool))
            assert torch.equal(tensor, before[name].masked_fill(dropped, 0))
        model.save_pretrained(tmp_path)
        reloaded = load_model(tmp_path).state_dict()
        assert reloaded.keys() == before.keys()
        assert all(torch.equal(tensor, reloaded[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("architecture", EVERY)
def test_logits_change_only_through_the_mlps(architecture):
    model = build(architecture)
    mlps = find_mlps(model)
    last = [weight for mlp in mlps for weight in (mlp.output, mlp.output_bias) if weight]
    first = [weight for mlp in mlps for weight in (*mlp.inputs, *mlp.biases)]
    hooks = [mlp.down.register_forward_hook(lambda module, inputs, output: output * 0) for mlp in mlps]
    with torch.no_grad():
        without_mlps = model(TOKENS).logits
        with applied(model, Zeros({weight.name: torch.ones_like(weight.view(), dtype=torch.bool) for weight in first})):
            assert torch.equal(model(TOKENS).logits, without_mlps)
        for hook in hooks:
            hook.remove()
        with applied(model, Zeros({weight.name: torch.ones_like(weight.view(), dtype=torch.bool) for weight in last})):
            assert torch.equal(model(TOKENS).logits, without_mlps)
        assert not torch.allclose(model(TOKENS).logits, without_mlps, atol=1e-3)


def test_weights_are_seen_as_out_in_and_written_through():
    mlp = find_mlps(build("gpt2"))[0]
    up = mlp.inputs[0]
    assert up.transposed and tuple(up.parameter.shape) == (16, 64)
    up.view()[5, 3] = 42.0
    assert up.parameter[3, 5] == 42.0
    assert up.view(torch.zeros(16, 64)).shape == (64, 16)


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_cannot_be_edited_is_refused_in_words_that_users_know(architecture):
    model = build(architecture)
    with pytest.raises(UserError, match=f"{REFUSED[architecture][1]}.* not supported") as error:
        find_mlps(model)
    assert type(next(iter(find_blocks(model)[1]))).__name__ in str(error.value) and "\n" not in str(error.value)


def test_other_structures_are_refused_with_what_was_found():
    model = build("llama")
    model.model.layers[1].mlp.extra = torch.nn.Linear(16, 16)
    with pytest.raises(UserError, match=r"LlamaDecoderLayer model.layers.1: no MLP .* found mlp.gate_proj \(24, 16\)"):
        find_mlps(model)


def test_a_model_without_a_list_of_blocks_is_refused():
    model = build("gpt2")
    model.transformer.h = torch.nn.ModuleList(model.transformer.h[:1])
    with pytest.raises(UserError, match=r"GPT2LMHeadModel: no list of 2 blocks .* transformer \(GPT2Model\)"):
        find_mlps(model)
