"""Opening any causal LM: folders, the hub's cache without a network, too little memory, offloaded weights."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tinymem.data.tokenizer import train_tokenizer
from tinymem.errors import UserError
from tinymem.models import production
from tinymem.models.production import open_causal_lm, weight_bytes

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=300)
NAME = "EleutherAI/pythia-1m"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random GPT-NeoX with a tokenizer."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("neox") / "model"
    config = AutoConfig.for_model("gpt_neox", bos_token_id=0, eos_token_id=0, max_position_embeddings=96, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    train_tokenizer(["the river runs to the sea"] * 9, 273).save_pretrained(path)
    return path


@pytest.fixture
def cached(folder, tmp_path, monkeypatch):
    """cached(revision): puts the model into the hub's local cache; the hub itself cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(production, "hub_reachable", lambda: False)

    def cache(revision):
        repository, commit = tmp_path / f"models--{NAME.replace('/', '--')}", "0" * 40
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        return repository / "snapshots" / commit

    return cache


@pytest.mark.parametrize("dtype", production.DTYPES)
def test_a_folder(folder, dtype):
    model, tokenizer = open_causal_lm(folder, dtype=dtype)
    assert (
        not model.training and model.dtype == getattr(torch, dtype) and tokenizer.decode(tokenizer("river").input_ids)
    )
    stored = load_file(folder / "model.safetensors")
    assert len(stored) == len(model.state_dict())
    for name, tensor in stored.items():  # files keep the output layer under its first name
        opened = model.get_parameter(name.replace("embed_out", "lm_head"))
        assert torch.equal(opened, tensor.to(model.dtype))
    assert weight_bytes(model, model.dtype) == sum(p.numel() * p.element_size() for p in model.parameters())


def test_a_folder_of_steps_and_one_without_tokenizer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "step36000", ignore=shutil.ignore_patterns("tokenizer*"))
    assert open_causal_lm(tmp_path, step=36000)[1] is None
    with pytest.raises(UserError, match="--step 72000: no step72000 in the folder"):
        open_causal_lm(tmp_path, step=72000)


def test_pickled_weights_are_read_as_tensors_only(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "m" / "pytorch_model.bin")
    assert torch.equal(open_causal_lm(tmp_path / "m")[0].lm_head.weight, open_causal_lm(folder)[0].lm_head.weight)
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # a pickle that runs a command
    with pytest.raises(UserError, match="more than tensors"):
        open_causal_lm(tmp_path / "m")


@pytest.mark.parametrize("step, revision", [(None, "main"), (36000, "step36000")])
def test_the_hubs_cache_serves_without_a_network(cached, step, revision):
    cached(revision)
    model, tokenizer = open_causal_lm(NAME, step=step)
    assert model.config.model_type == "gpt_neox" and len(tokenizer) == 273


def test_a_cache_with_config_but_without_weights(cached):
    (cached("main") / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in the hub's cache"):
        open_causal_lm(NAME)


@pytest.mark.parametrize(
    "name, message",
    [
        (NAME, "cannot be reached and main of this model is not in its cache"),
        ("no/such/folder", "no such folder, and no"),
    ],
)
def test_an_offline_hub_and_no_name_at_all(cached, name, message):
    with pytest.raises(UserError, match=message):
        open_causal_lm(name)


def test_online_only_safetensors_are_fetched_where_there_are_any(folder, tmp_path, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns, local_files_only):
        asked.append((revision, tuple(allow_patterns), local_files_only))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(production, "hub_reachable", lambda: True)
    open_causal_lm(NAME, step=72000)
    config, weights = asked
    assert config == ("step72000", production.DESCRIPTION_FILES, False)
    assert "model*.safetensors" in weights[1] and not any("bin" in pattern for pattern in weights[1])


@pytest.mark.parametrize("share, way", [(0.8, "--dtype bfloat16 helps"), (0.1, "a smaller model")])
def test_too_little_memory_is_seen_before_loading(folder, monkeypatch, share, way):
    needed = weight_bytes(open_causal_lm(folder)[0], torch.float32)
    monkeypatch.setattr(production, "free_bytes", lambda device, device_map: share * needed)
    monkeypatch.setattr(production, "read_model", None)
    with pytest.raises(UserError, match=f"more than is free; .*{way}"):
        open_causal_lm(folder)


def test_a_file_of_weights_that_do_not_belong_to_the_config(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    old = {"gpt_neox.layers.0.attention.bias": torch.ones(2), "gpt_neox.layers.0.attention.masked_bias": torch.ones(1)}
    save_file(weights | old, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    open_causal_lm(tmp_path / "m")
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="do not belong together"):
        open_causal_lm(tmp_path / "m")


def test_weights_left_outside_the_gpus_cannot_be_edited(folder):
    model, _ = open_causal_lm(folder)
    model.hf_device_map = {"gpt_neox.embed_in": 0, "gpt_neox.layers.0": "cpu"}
    with pytest.raises(UserError, match="a layer does not fit on the GPUs"):
        production.check_editable(model)
    model.hf_device_map = {"": "cpu"}
    production.check_editable(model)


def test_device_map_auto_without_a_gpu(folder):
    if not torch.cuda.is_available():
        model, _ = open_causal_lm(folder, device_map="auto")
        assert model.device.type == "cpu" and model(torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 300)


@pytest.mark.parametrize("sees_ahead", [False, True])
def test_a_model_that_sees_later_tokens_is_refused(tmp_path, sees_ahead):
    from transformers import BertConfig, BertLMHeadModel

    sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertLMHeadModel(BertConfig(**sizes, is_decoder=not sees_ahead)).save_pretrained(tmp_path)
    if sees_ahead:
        with pytest.raises(UserError, match="^bert: .* encoders such as BERT are not$"):
            open_causal_lm(tmp_path)
    else:
        assert open_causal_lm(tmp_path)[0].config.is_decoder
