import pytest
import torch
import transformers

from tinymem.errors import UserError
from tinymem.localize.ranking import neuron_masks
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied
from tinymem.models.tinymem import load_model

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24)
SIZES |= dict(head_dim=8)
GPT2_SIZES = dict(n_embd=16, n_layer=2, n_head=2)
OPT_SIZES = dict(hidden_size=16, word_embed_proj_dim=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2)
PLAIN = [  # architecture, its sizes, block, W_in, W_out, inner_dim
    ("gpt2", GPT2_SIZES, "transformer.h.1", "mlp.c_fc", "mlp.c_proj", 64),
    ("gptj", GPT2_SIZES | {"rotary_dim": 4}, "transformer.h.1", "mlp.fc_in", "mlp.fc_out", 64),
    ("gpt_neox", SIZES, "gpt_neox.layers.1", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", 24),
    ("phi", SIZES, "model.layers.1", "mlp.fc1", "mlp.fc2", 24),
    ("opt", OPT_SIZES, "model.decoder.layers.1", "fc1", "fc2", 24),
]
GATED = ["llama", "olmo2", "qwen2", "qwen3", "mistral", "gemma2"]
EVERY = [case[:2] for case in PLAIN] + [(architecture, SIZES) for architecture in (*GATED, "phi3")]
TOKENS = torch.arange(10).view(2, 5)


def build(architecture, sizes):
    torch.manual_seed(0)
    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    config = transformers.AutoConfig.for_model(architecture, vocab_size=31, **special, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at 0, where an edit would not show
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("architecture, sizes, block, up, down, inner", PLAIN)
def test_plain_mlps(architecture, sizes, block, up, down, inner):
    model = build(architecture, sizes)
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
    model = build(architecture, SIZES)
    mlp = find_mlps(model)[1]
    assert [(w.name, tuple(w.view().shape)) for w in mlp.weights] == [
        ("model.layers.1.mlp.gate_proj.weight", (24, 16)),
        ("model.layers.1.mlp.up_proj.weight", (24, 16)),
        ("model.layers.1.mlp.down_proj.weight", (16, 24)),
    ]
    assert len(mlp.inputs) == 2 and mlp.biases == () and mlp.output_bias is None
    assert mlp.down is model.model.layers[1].mlp.down_proj


def test_gate_and_up_in_one_matrix():
    mlp = find_mlps(build("phi3", SIZES))[1]
    assert [(w.name, tuple(w.view().shape)) for w in mlp.weights] == [
        ("model.layers.1.mlp.gate_up_proj.weight", (48, 16)),
        ("model.layers.1.mlp.down_proj.weight", (16, 24)),
    ]
    masks = neuron_masks([mlp], [torch.arange(24.0)], 1 / 24)
    assert masks["model.layers.1.mlp.gate_up_proj.weight"].any(1).nonzero().flatten().tolist() == [23, 47]


@pytest.mark.parametrize("architecture, sizes", EVERY)
def test_names_are_those_of_the_state_dict_and_a_dropped_neuron_is_silent(architecture, sizes):
    model = build(architecture, sizes)
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


@pytest.mark.parametrize("architecture, sizes", EVERY)
def test_edits_land_where_they_should_and_a_saved_folder_has_them(architecture, sizes, tmp_path):
    model = build(architecture, sizes)
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


@pytest.mark.parametrize("architecture, sizes", EVERY)
def test_logits_change_only_through_the_mlps(architecture, sizes):
    model = build(architecture, sizes)
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
    mlp = find_mlps(build("gpt2", GPT2_SIZES))[0]
    up = mlp.inputs[0]
    assert up.transposed and tuple(up.parameter.shape) == (16, 64)
    up.view()[5, 3] = 42.0
    assert up.parameter[3, 5] == 42.0
    assert up.view(torch.zeros(16, 64)).shape == (64, 16)


@pytest.mark.parametrize(
    "architecture, sizes, named",
    [
        ("mamba", dict(hidden_size=16, num_hidden_layers=2), "mixer.in_proj"),
        ("mixtral", SIZES | {"num_local_experts": 2}, "mlp"),
    ],
)
def test_other_structures_are_refused_with_what_was_found(architecture, sizes, named):
    model = build(architecture, sizes)
    with pytest.raises(UserError) as error:
        find_mlps(model)
    assert named in str(error.value) and type(next(iter(model.base_model.layers))).__name__ in str(error.value)


def test_a_model_without_a_list_of_blocks_is_refused():
    model = build("gpt2", GPT2_SIZES)
    model.transformer.h = torch.nn.ModuleList(model.transformer.h[:1])
    with pytest.raises(UserError, match=r"GPT2LMHeadModel: no list of 2 blocks .* transformer \(GPT2Model\)"):
        find_mlps(model)
