"""Every method on structurally different models: parallel residual, biases, gates, gate and up in one matrix; one
method on every architecture that the documentation names.
"""

import re

import pytest
import torch
from architectures import ARCHITECTURES as NAMED
from architectures import REFUSED, build
from methods import masks_of, quick
from small import ROOT, in_process
from transformers import AutoConfig, AutoModelForCausalLM

from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.localize.ranking import neuron_masks
from tinymem.localize.registry import METHODS, STUDY
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied

HEADS = dict(num_attention_heads=2, num_hidden_layers=2, hidden_size=8, max_position_embeddings=16)
ARCHITECTURES = {
    "phi": dict(intermediate_size=12, partial_rotary_factor=0.5, **HEADS),  # parallel residual, biases
    "gptj": dict(
        n_embd=8, n_layer=2, n_head=2, n_positions=16, rotary_dim=4
    ),  # parallel residual, output layer with bias
    "opt": dict(ffn_dim=12, word_embed_proj_dim=8, **HEADS),  # no MLP module: fc1 and fc2 lie in the block
    "phi3": dict(intermediate_size=12, num_key_value_heads=2, **HEADS),  # gate and up in one matrix
    "qwen3": dict(intermediate_size=12, num_key_value_heads=2, head_dim=4, **HEADS),  # gated
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    torch.manual_seed(0)
    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, vocab_size=14, initializer_range=0.2)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(request.param, **special, **ARCHITECTURES[request.param])
    ).eval()


@pytest.mark.parametrize("name", STUDY)
def test_every_method(model, name, tiny_task, snapshot):
    method = METHODS[name]
    before = snapshot(model)
    masks = masks_of(method, model, tiny_task(3, 6, microbatch=3), quick(method))
    shapes = {weight.name: weight.view().shape for mlp in find_mlps(model) for weight in mlp.weights}
    assert masks and all(mask.shape == shapes[key] and mask.dtype == torch.bool for key, mask in masks.items())
    dropped = sum(int(mask.sum()) for mask in masks.values())
    assert 0 < dropped < sum(mask.numel() for mask in masks.values())
    assert snapshot(model) == before


def test_zero_out_is_the_rise_in_loss(model, tiny_task):
    task, mlps = tiny_task(3, microbatch=5), find_mlps(model)
    scores = METHODS["zero_out"].module.score(model, task, None)
    before = task.mean_loss(model, task.forget.planted)
    for mlp, found in zip(mlps, scores):
        for neuron in (0, mlp.inner_dim - 1):
            alone = torch.arange(mlp.inner_dim).eq(neuron).float()
            with applied(model, Zeros(neuron_masks([mlp], [alone], 1 / mlp.inner_dim))):
                rise = task.mean_loss(model, task.forget.planted) - before
            assert found[neuron].item() == pytest.approx(rise, abs=1e-5)


@pytest.mark.parametrize("architecture", NAMED)
def test_a_method_edits_every_architecture_that_is_named_and_puts_it_back(architecture, tiny_task, snapshot):
    model, task, method = build(architecture), tiny_task(3, 6, microbatch=3), METHODS["activations"]
    tokens, before = task.forget.planted, snapshot(model)
    masks = masks_of(method, model, task, quick(method))
    expected = {weight.name for mlp in find_mlps(model) for weight in (*mlp.inputs, *mlp.biases)}
    assert masks.keys() == expected and all(mask.any() and not mask.all() for mask in masks.values())
    with torch.no_grad():
        original = model(tokens).logits
        with applied(model, Zeros(masks)):
            assert (model(tokens).logits - original).abs().max() > 1e-4
        assert torch.equal(model(tokens).logits, original)
    assert snapshot(model) == before


def test_the_documentation_names_what_is_tested():
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    works, refused = page.partition("\n| MLP |")[2].partition("\n## ")[0].split("**Not supported**")
    rows = "".join(line.split(" | ")[1] for line in works.partition("\n\n")[0].splitlines()[2:])
    assert set(re.findall(r"`([a-z0-9_]+)`", rows)) == set(NAMED)
    assert set(re.findall(r"`([a-z0-9_]+)`", refused)) == set(REFUSED)


@pytest.mark.parametrize("architecture", ["mixtral", "mamba"])
def test_a_script_refuses_in_one_line(architecture, tmp_path, capsys):
    build(architecture).save_pretrained(tmp_path)
    rows = torch.randint(0, 31, (2, 40, 12), generator=torch.Generator().manual_seed(0)).int()
    paths = [write_token_set(tmp_path / f"{i}.safetensors", TokenSet(tokens, {})) for i, tokens in enumerate(rows)]
    words = ["--model_name", tmp_path, "--memorized", paths[0], "--random", paths[1], "--prompt_tokens", 4]
    words += ["--continuation_tokens", 4, "--num_test", 8, "--num_retain", 8, "--localization_method", "activations"]
    with pytest.raises(SystemExit) as stopped:
        in_process("src/localize/prod_grad.py", *words)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and REFUSED[architecture][1] in message and message.count("\n") == 1
