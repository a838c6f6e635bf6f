"""--tokenizer: any tokenizer.json reads the text; its content is part of a run's identity."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tinymem.data.build import build_dataset
from tinymem.data.chunks import chunk_paths, load_tokenizer
from tinymem.data.corpus import resolve_corpus
from tinymem.data.settings import DataSettings
from tinymem.data.text_dataset import build_text_dataset
from tinymem.data.tokenizer import END_OF_TEXT, read_tokenizer, train_tokenizer
from tinymem.errors import UserError

WORDS = ["the", "sea", "river", "stone", "runs", "bridge"]


def word_tokenizer(path, words):
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


@pytest.fixture
def settings(tmp_path):
    lines = [{"text": " ".join(WORDS[(number * step) % 6] for step in range(90))} for number in range(1, 41)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + f"{' ' * n}\n" for n, line in enumerate(lines)))
    (tmp_path / "own").mkdir()
    word_tokenizer(tmp_path / "own" / "tokenizer.json", ["</s>", *WORDS])
    return DataSettings(
        data_name="wiki", corpus=str(tmp_path / "a.jsonl"), tokenizer=str(tmp_path / "own"), max_ctx=20, num_noise=2,
        num_test=1, prompt_tokens=5, continuation_tokens=5,
    )  # fmt: skip


def test_the_dataset_has_its_ids_and_a_last_end_of_text(settings, tmp_path):
    dataset = build_dataset(settings)
    assert dataset.vocabulary_size == 8 and dataset.eos == 7 == dataset.pad == int(dataset.sequences.max())
    tokenizer = load_tokenizer(settings, None)
    assert tokenizer.eos_token == END_OF_TEXT and tokenizer("sea stone").input_ids == [2, 4]
    file = replace(settings, tokenizer=str(tmp_path / "own" / "tokenizer.json"))
    assert (build_dataset(file).sequences == dataset.sequences).all()


def test_its_content_is_part_of_the_identity(settings, tmp_path):
    resolved = resolve_corpus(settings)
    assert len(resolved.tokenizer_sha256) == 64 and resolve_corpus(resolved) == resolved
    before = chunk_paths(resolved, tmp_path)
    assert all(
        build_text_dataset(resolved, tmp_path).vocabulary_size == 8 for _ in range(2)
    )  # the second from the cache
    word_tokenizer(tmp_path / "own" / "tokenizer.json", ["</s>", *WORDS[::-1]])
    for use in (resolve_corpus, build_dataset, lambda data: load_tokenizer(data, None)):
        with pytest.raises(UserError, match="this is another tokenizer"):
            use(resolved)
    assert not set(before) & set(chunk_paths(settings, tmp_path))
    plain = DataSettings(data_name="wiki", corpus=settings.corpus)
    assert not {"tokenizer", "tokenizer_sha256"} & set(plain.applicable()) and "tokenizer" in settings.applicable()


def test_end_of_text_that_is_there_is_kept_if_it_is_the_last_id(tmp_path):
    for words, name, size in (
        (["a", END_OF_TEXT], END_OF_TEXT, 2),
        ([END_OF_TEXT, "a"], f"<|{END_OF_TEXT}|>", 3),
    ):
        tokenizer = read_tokenizer(word_tokenizer(tmp_path / "t.json", words))
        assert (tokenizer.eos_token, tokenizer.eos_token_id, len(tokenizer)) == (name, size - 1, size)
    trained = train_tokenizer(["the sea runs"] * 9, 270)
    trained.save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path / "tokenizer.json")
    assert again.get_vocab() == trained.get_vocab() and again.eos_token_id == trained.eos_token_id


def test_bad_tokenizers(settings, tmp_path):
    def refused(**changes):
        with pytest.raises(UserError) as error:
            resolved = resolve_corpus(replace(settings, **changes))
            load_tokenizer(resolved, None)
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "damaged.json").write_text("{")
    Tokenizer(models.WordLevel({"a": 0, "b": 5}, unk_token="a")).save(str(tmp_path / "gaps.json"))
    assert "no such tokenizer.json" in refused(tokenizer=str(tmp_path / "nowhere"))
    assert "no such tokenizer.json" in refused(tokenizer=str(tmp_path))
    assert "damaged" in refused(tokenizer=str(tmp_path / "damaged.json"))
    assert "without gaps" in refused(tokenizer=str(tmp_path / "gaps.json"))
    assert "give one of them" in refused(train_tokenizer=True)
    assert "needs text" in refused(data_name="increment")
    assert "is that of the file" in refused(tokenizer=None, tokenizer_sha256="ab")
