"""Zero-Out against really zeroing one neuron after the other in the weights."""

from dataclasses import replace

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM, PhiConfig, PhiForCausalLM

from tinymem.localize.neuron import zero_out
from tinymem.localize.neuron.hidden import recorded
from tinymem.localize.neuron.rank_one import adds_to_stream, image, readers
from tinymem.localize.ranking import neuron_masks
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, apply
from tinymem.models.losses import token_losses


def scores_of(model, task):
    return zero_out.score(model, task, zero_out.HyperParameters())


def without_each_neuron(model, task):
    """Zeroes each neuron's rows of W_in and entries of b_in and measures the loss of the edited model."""
    mlps, before = find_mlps(model), task.mean_loss(model, task.forget.planted)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rises = [torch.zeros(mlp.inner_dim) for mlp in mlps]
    for layer, mlp in enumerate(mlps):
        for neuron in range(mlp.inner_dim):
            one_hot = [torch.zeros(other.inner_dim) for other in mlps]
            one_hot[layer][neuron] = 1
            masks = neuron_masks(mlps[layer : layer + 1], one_hot[layer : layer + 1], 1 / mlp.inner_dim)
            apply(model, Zeros(masks))
            rises[layer][neuron] = task.mean_loss(model, task.forget.planted) - before
            model.load_state_dict(weights)
    return rises


def assert_exact(model, task):
    scores, expected = scores_of(model, task), without_each_neuron(model, task)
    for score, rise in zip(scores, expected, strict=True):
        assert rise.abs().max() > 1e-4
        torch.testing.assert_close(score, rise, atol=2e-6, rtol=1e-4)


def test_exact_on_each_architecture(any_model, tiny_task):
    assert_exact(any_model, tiny_task(3))


def test_exact_on_three_layers_with_ignored_tokens(tiny_model, tiny_task):
    assert_exact(tiny_model("gpt2", layers=3), tiny_task(3, ignored_token=4))


SHAPE = dict(
    vocab_size=14, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=12, initializer_range=0.2, pad_token_id=13, bos_token_id=10, eos_token_id=11,
)  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Olmo2ForCausalLM(Olmo2Config(**SHAPE)), id="a norm after the MLP"),
        pytest.param(lambda: PhiForCausalLM(PhiConfig(**SHAPE)), id="a dropout called before and after the MLP"),
    ],
)
def test_exact_where_the_mlp_is_not_simply_added_last(make, tiny_task):
    torch.manual_seed(0)
    assert_exact(make().eval(), tiny_task(2))


def test_exact_where_the_output_is_scaled_before_it_is_added(tiny_model, tiny_task):
    model = tiny_model("gpt2")
    for block in model.transformer.h:
        block.mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert_exact(model, tiny_task(2))


READERS = {
    "gpt2": [["transformer.h.1.attn.c_attn"], ["lm_head"]],
    "gpt_neox": [["gpt_neox.layers.1.attention.query_key_value", "gpt_neox.layers.1.mlp.dense_h_to_4h"], ["lm_head"]],
    "llama": [[], []],  # another norm
}


@pytest.mark.parametrize("architecture", READERS)
def test_closed_form_of_what_reads_the_stream(architecture, tiny_model, tiny_task):
    """The layers behind an MLP are found, and what they make of its output without a neuron is what they compute."""
    model, tokens = tiny_model(architecture), tiny_task(1).forget.planted
    torch.manual_seed(3)
    for parameter in model.parameters():  # biases and norms that do something
        torch.nn.init.normal_(parameter, std=0.3)
    names = {module: name for name, module in model.named_modules()}
    with torch.no_grad():
        for mlp, expected in zip(find_mlps(model), READERS[architecture], strict=True):
            with readers(model, mlp) as found:
                model(tokens)
            assert [names[reader.linear] for reader in found] == expected
            neurons, columns = torch.rand(mlp.inner_dim, tokens.shape[1]), mlp.output.view().T
            for reader in found:
                chosen = torch.tensor([3, 0, 7])
                changed = reader.stream - neurons[chosen, :, None] * columns[chosen, None, :]
                plain = reader.linear(reader.norm(changed))
                torch.testing.assert_close(image(reader, neurons, columns)(chosen), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
def test_whether_the_output_is_simply_added(any_model, tiny_task, scaled):
    tokens = tiny_task(1).forget.planted
    mlp = find_mlps(any_model)[0]
    module = any_model.get_submodule(mlp.output.name.partition(".mlp.")[0] + ".mlp")
    if scaled:
        module.register_forward_hook(lambda module, inputs, output: 1.1 * output)
    with torch.no_grad():
        with recorded(any_model, mlp.down) as outputs:
            token_losses(any_model, tokens)
        assert adds_to_stream(any_model, mlp, outputs, lambda: token_losses(any_model, tokens)) != scaled


def test_conv1d_and_linear_agree(tiny_model, tiny_task, linear_twin):
    model, task = tiny_model("gpt2"), tiny_task(3)
    for ours, theirs in zip(scores_of(model, task), scores_of(linear_twin(model), task), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("forget", [1, 5])
def test_microbatch_does_not_matter(any_model, tiny_task, forget):
    task = tiny_task(forget)
    for one, many in zip(scores_of(any_model, replace(task, microbatch=1)), scores_of(any_model, task), strict=True):
        torch.testing.assert_close(one, many, atol=1e-6, rtol=1e-4)


def test_a_dead_neuron_scores_exactly_zero(tiny_model, tiny_task):
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias[5] = -1e3
    assert scores_of(model, tiny_task(3))[0][5] == 0


def test_bfloat16(any_model, tiny_task):
    for score in scores_of(any_model.bfloat16(), tiny_task(3)):
        assert score.dtype == torch.float32 and score.isfinite().all()


def test_leaves_the_model_as_it_was(any_model, tiny_task, snapshot):
    any_model.train()
    next(any_model.parameters()).requires_grad_(False)
    before = snapshot(any_model)
    scores_of(any_model, tiny_task(2))
    assert snapshot(any_model) == before
    assert not any("forward" in vars(module) or module._forward_hooks for module in any_model.modules())
