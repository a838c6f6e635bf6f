"""What lies in a model's folder besides its weights and vocabulary changes no number and runs no code."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import new_model
from transformers import AutoConfig, AutoModelForCausalLM

from tinymem.data.tokenizer import tokenize, train_tokenizer
from tinymem.errors import UserError
from tinymem.models import production
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.losses import token_losses
from tinymem.models.production import open_causal_lm, open_description
from tinymem.models.tinymem import load_model
from tinymem.training.checkpoint import save_model

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24)
TEXT = "the river runs to the sea"
TOKENS = torch.arange(40).view(2, 20)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A random Llama with tied embeddings and a tokenizer."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("folders") / "plain"
    config = AutoConfig.for_model(
        "llama", vocab_size=300, max_position_embeddings=96, tie_word_embeddings=True, **SIZES
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    train_tokenizer([TEXT] * 9, 273).save_pretrained(path)
    return path


@pytest.fixture
def folder(plain, tmp_path):
    """A copy to spoil. The folder's code writes a file `ran`."""
    shutil.copytree(plain, tmp_path / "m")
    (tmp_path / "m" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return tmp_path / "m"


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))


def merge(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def numbers(folder):
    model, tokenizer = open_causal_lm(folder)
    with torch.no_grad():
        losses = token_losses(model, TOKENS)
    return weights_fingerprint(model), losses.tolist(), tokenize(tokenizer, [TEXT, TEXT * 9])[1].tolist()


TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 200}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
AUTO_MAP = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}


@pytest.mark.parametrize(
    "name, values",
    [
        ("generation_config.json", dict(do_sample=True, temperature=0.1, repetition_penalty=9.0, suppress_tokens=[1])),
        ("generation_config.json", dict(num_beams="many")),
        ("config.json", dict(auto_map=AUTO_MAP)),
        ("config.json", dict(return_dict=False)),
        ("config.json", dict(output_hidden_states=True, output_attentions=True, use_cache=False)),
        ("config.json", dict(attn_implementation="flash_attention_2")),
        ("config.json", dict(_attn_implementation="flex_attention")),
        ("config.json", dict(attention_dropout=0.5, dtype="float16", torch_dtype="float16")),
        ("tokenizer.json", dict(truncation=TRUNCATION)),
        ("tokenizer.json", dict(padding={**PADDING, "pad_token": "<|endoftext|>"})),
        ("tokenizer_config.json", dict(padding_side="left", model_max_length=2, clean_up_tokenization_spaces=True)),
        ("tokenizer_config.json", dict(chat_template="{{ raise_exception('no') }}")),
    ],
)
def test_settings_in_a_folder_change_no_number(plain, folder, name, values):
    merge(folder, name, **values)
    assert numbers(folder) == numbers(plain)
    assert not (folder.parent / "ran").exists()
    model, tokenizer = open_causal_lm(folder)
    assert numbers(save_model(folder.parent / "out", model, {}, tokenizer)) == numbers(plain)


def test_a_tokenizers_dropout_is_left_out(plain, folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.9
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert numbers(folder) == numbers(plain)


def test_tokens_that_other_files_add_are_said(plain, folder, caplog):
    open_description(plain)
    assert not caplog.text
    merge(folder, "added_tokens.json", the=5)
    open_description(folder)
    assert "files beside tokenizer.json add tokens that it lacks: the" in caplog.text


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_a_folder_is_never_run(folder, name):
    if name == "config.json":
        merge(folder, name, model_type="foreign", auto_map=AUTO_MAP)
    else:
        merge(folder, name, tokenizer_class="T", auto_map={"AutoTokenizer": ["code.T", None]})
    with pytest.raises(UserError, match=r"needs code of its own \(auto_map\), which is never run"):
        open_description(folder)
    assert not (folder.parent / "ran").exists()


def test_an_adapter_beside_the_weights_is_refused_or_not_applied_and_said(plain, folder, caplog, monkeypatch):
    merge(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="other/model")
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 16)}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="holds an adapter beside the weights; merge it"):  # peft would apply it
        open_causal_lm(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: False)
    monkeypatch.setattr("transformers.models.auto.auto_factory.is_peft_available", lambda: False)
    assert numbers(folder) == numbers(plain)
    assert "adapter beside the weights (adapter_config.json) is not applied" in caplog.text


def only_an_adapter(folder):
    merge(folder, "adapter_config.json", peft_type="LORA")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def nothing_but_an_adapter(folder):
    only_an_adapter(folder)
    (folder / "config.json").unlink()


def only_a_variant(folder):
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def one_weight_less(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (only_an_adapter, r"holds an adapter \(adapter_config.json\), no model"),
        (nothing_but_an_adapter, r"holds an adapter \(adapter_config.json\), no model"),
        (only_a_variant, "no weights but the variant model.fp16.safetensors; rename it to model.safetensors"),
        (one_weight_less, r"do not belong together \(model.norm.weight\)$"),
        (lambda folder: merge(folder, "config.json", quantization_config={"quant_method": "gptq"}), "quantised"),
    ],
)
def test_what_is_no_model_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        open_causal_lm(folder)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_left_out(plain, folder, prefix, caplog):
    weights = load_file(folder / "model.safetensors")
    renamed = {prefix + name: tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert numbers(folder) == numbers(plain) and "the prefix of torch.compile" in caplog.text
    model, tokenizer = open_causal_lm(folder)
    saved = save_model(folder.parent / "out", model, {}, tokenizer)
    assert load_file(saved / "model.safetensors").keys() == weights.keys() and numbers(saved) == numbers(plain)


def test_an_untied_head_is_saved_as_one(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model, tokenizer = open_causal_lm(folder)
    saved = save_model(folder.parent / "out", model, {}, tokenizer)
    assert json.loads((saved / "config.json").read_text())["tie_word_embeddings"] is False
    assert numbers(saved) == numbers(folder)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(saved).lm_head.weight, weights["lm_head.weight"])


BAD_TOKENIZERS = {
    "tokenizer.json": [b"{", b"[]", b"{}", b"null", b"\xff\xfe\x00", b'{"model": {"type": "X"}}', b"5"],
    "tokenizer_config.json": [b"[]", b"{", b'{"bos_token": 5}', b'{"bos_token": {"content": 5}}',
                              b'{"added_tokens_decoder": {"x": 1}}'],
    "added_tokens.json": [b"5"],
    "special_tokens_map.json": [b'{"bos_token": [1]}'],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, content", [(name, content) for name, each in BAD_TOKENIZERS.items() for content in each]
)
def test_a_damaged_tokenizer_is_one_line_and_no_hindrance_to_token_ids(folder, name, content, caplog):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot open this tokenizer") as error:
        open_description(folder)
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        model, tokenizer = open_causal_lm(folder)
    assert tokenizer is None and "token ids need none" in caplog.text


def test_a_folder_with_the_name_of_a_hub_model_says_so(plain, tmp_path, monkeypatch, caplog):
    shutil.copytree(plain, tmp_path / "EleutherAI" / "pythia-70m")
    monkeypatch.chdir(tmp_path)
    for name, said in (("./EleutherAI/pythia-70m", False), ("EleutherAI/pythia-70m", True)):
        production.model_folder(name)
        assert ("the folder of this name is opened" in caplog.text) is said


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
def test_no_weight_may_be_missing_or_of_another_shape(tmp_path, architecture):
    new_model(architecture, layers=1).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    for name in weights:
        others = {other: value for other, value in weights.items() if other != name}
        for some in (others, {**others, name: torch.zeros(2, 2)}):
            save_file(some, path, metadata={"format": "pt"})
            with pytest.raises(UserError, match="config.json and the weights do not belong together"):
                load_model(tmp_path)
