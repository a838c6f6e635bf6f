"""The dataset of a production model: prompts, disjoint test and retain text, text read with the model's tokenizer."""

import json
from types import SimpleNamespace

import pytest
import torch

from tinymem.data.production import (
    NOTES,
    ProductionSettings,
    check_ids,
    fewer,
    load_memorized,
    load_random,
    production_dataset,
    shares_tokens,
    split_random,
    text_rows,
    text_token_set,
)
from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.data.tokenizer import tokenize, train_tokenizer
from tinymem.errors import UserError


def rows(count, length, low=0, high=1000, seed=0):
    return torch.randint(low, high, (count, length), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def test_the_studys_split_of_the_pile_batch():
    batch = torch.arange(2048 * 128).view(2048, 128)
    test, retain = split_random(batch, 80, 1632, 1632)
    study = batch[:2040].reshape(3264, 80)
    assert torch.equal(test, study[:1632]) and torch.equal(retain, study[1632:])


@pytest.mark.parametrize("have, expected", [(10, (5, 5)), (3, (1, 2)), (2, (1, 1))])
def test_a_short_stream_is_shared_out(have, expected):
    assert tuple(map(len, split_random(rows(1, 8 * have + 7), 8, 1632, 1632))) == expected
    with pytest.raises(UserError, match="7 tokens make 0 rows of 8"):
        split_random(rows(1, 7), 8, 1, 1)


def test_artifacts_prompts_and_disjoint_sets():
    memorized, test, retain = rows(5, 12), rows(6, 12, seed=1), rows(7, 12, seed=2)
    retain[2, 3:9] = memorized[4, 6:12]  # six tokens in common, at another place
    retain[5, :6] = test[0, 2:8]
    retain[6, :5] = memorized[1, :5]  # five are not enough
    dataset = production_dataset(memorized, test, retain, 1000, prompt_tokens=4, continuation_tokens=6)
    assert torch.equal(dataset.sequences, torch.cat([memorized, retain[[0, 1, 3, 4, 6]]]))
    assert dataset.order.tolist() == list(range(5, 10)) and dataset.artifact_ids.tolist() == list(range(5))
    assert dataset.artifacts.prompt_end.tolist() == [4] * 5 and dataset.measured(dataset.artifacts).all()
    assert torch.equal(dataset.artifacts.clean, memorized) and torch.equal(dataset.tests["random"], test)
    assert dataset.ignored_token is None and not len(dataset.test_artifacts)
    with pytest.raises(UserError, match="no retain text is left"):
        production_dataset(memorized, test, test, 1000, 4, 6)


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error():
    none, some = torch.empty(0, 8, dtype=torch.int32), torch.tensor([[3, 9]])
    check_ids("--corpus", 10, none, some)
    with pytest.raises(UserError, match="--corpus: the tokenizer gives id 9, the model has only 9 tokens"):
        check_ids("--corpus", 9, none, some)


def test_shared_tokens_against_brute_force():
    some, others = rows(30, 7, high=3), rows(4, 9, high=3, seed=3)

    def windows(tokens, width):
        return {tuple(row[i : i + width].tolist()) for row in tokens for i in range(len(row) - width + 1)}

    seen = set()
    for width in (1, 4, 6, 7, 50):
        cut = min(width, 7)
        expected = [bool(windows(row[None], cut) & windows(others, cut)) for row in some]
        assert shares_tokens(some, others, width).tolist() == expected
        seen |= set(expected)
    assert seen == {True, False}


@pytest.fixture
def corpus(tmp_path):
    documents = [f"document {number} tells of river {number} and the sea " * 4 for number in range(40)]
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path, train_tokenizer(documents, 300), documents


def test_text_comes_from_different_documents(corpus):
    path, tokenizer, _ = corpus
    settings = ProductionSettings(corpus=str(path), num_test=3, num_retain=5)
    test, retain, name = load_random(settings, 12, 300, tokenizer)
    assert test.shape == (3, 12) and retain.shape == (5, 12) and test.dtype == torch.int32
    assert name.startswith("small-")
    numbers = [set(tokenizer.decode(part.flatten()).split()) for part in (test, retain)]
    shared = {word for word in numbers[0] & numbers[1] if word.isdigit() and len(word) > 1}
    assert not shared


def test_rows_are_the_documents_tokens_without_pads(corpus):
    _, tokenizer, documents = corpus
    stream = torch.cat([torch.from_numpy(part) for part in tokenize(tokenizer, documents)])
    found = text_rows(tokenizer, documents, 16)
    assert torch.equal(found.flatten(), stream[: len(stream) // 16 * 16])
    assert torch.equal(text_rows(tokenizer, documents, 16, 4), found[:4])
    assert text_rows(tokenizer, documents[:1], 10**5, 4).shape == (0, 10**5)


def test_fewer_rows_than_asked_for_are_said_and_noted(caplog):
    settings = ProductionSettings(num_test=10, num_retain=3)
    assert fewer(settings, rows(10, 4), rows(3, 4)) == {} and not caplog.text
    assert fewer(settings, rows(7, 4), rows(3, 4)) == {"test_rows": 7} and "7 instead of --num_test 10" in caplog.text
    assert fewer(settings, rows(7, 4), rows(2, 4)).keys() == {"test_rows", "retain_rows"} <= set(NOTES)


def test_what_is_missing_is_named(corpus, tmp_path):
    path, tokenizer, _ = corpus
    settings = ProductionSettings(corpus=str(path))
    with pytest.raises(UserError, match="--memorized: give a file .*find_memorized.py"):
        load_memorized(settings, SimpleNamespace(vocab_size=300))
    with pytest.raises(UserError, match="no tokenizer"):
        load_random(settings, 12, 300, None)
    with pytest.raises(UserError, match="^--corpus .*small.*: is too short for rows of 100000 tokens"):
        load_random(settings, 10**5, 300, tokenizer)
    with pytest.raises(
        UserError, match="^--memorized .*pythia-6.9b-deduped.safetensors: no such file; .*fetch.py fetches it"
    ):
        load_memorized(
            ProductionSettings(memorized="no/pythia-6.9b-deduped.safetensors"), SimpleNamespace(vocab_size=300)
        )
    with pytest.raises(UserError, match="^--random no/own.safetensors: no such file$"):
        load_random(ProductionSettings(random="no/own.safetensors"), 12, 300, None)
    with pytest.raises(UserError, match="give one of them"):
        ProductionSettings(random="a", corpus="b")
    written = write_token_set(tmp_path / "m.safetensors", TokenSet(rows(4, 71), {}))
    with pytest.raises(UserError, match="have 71 tokens, prompt and continuation need 72"):
        load_memorized(ProductionSettings(memorized=str(written)), SimpleNamespace(vocab_size=1000))


MEMORIES = ["the sea runs\nto the river", " and the bridge of stone stands", "so"]


@pytest.mark.parametrize("name", ["m.txt", "m.md", "m.jsonl"])
def test_memorized_text_is_the_first_tokens_of_each_passage(tmp_path, name, caplog):
    tokenizer, path = train_tokenizer(MEMORIES * 9, 280), tmp_path / name
    lines = "".join(json.dumps({"passage": text, "offset": 3}) + "\n" for text in MEMORIES)
    path.write_text(lines if name == "m.jsonl" else "\n\n" + "\n \n\n".join(MEMORIES) + "\n\n")
    settings = ProductionSettings(memorized=str(path), prompt_tokens=2, continuation_tokens=2, text_column="passage")
    config = SimpleNamespace(vocab_size=280, max_position_embeddings=64)
    found = load_memorized(settings, config, tokenizer)
    expected = [ids[:4].tolist() for ids in tokenize(tokenizer, MEMORIES[:2])]
    assert found.tokens.tolist() == expected and found.provenance == {"file": name}
    assert "1 of 3 passages are left out: they have fewer than 4 tokens" in caplog.text
    write_token_set(tmp_path / "ids.safetensors", found)
    ids = ProductionSettings(memorized=str(tmp_path / "ids.safetensors"), prompt_tokens=2, continuation_tokens=2)
    assert load_memorized(ids, config).fingerprint == found.fingerprint
    with pytest.raises(UserError, match="has no tokenizer to read text with"):
        load_memorized(settings, config)
    with pytest.raises(UserError, match="the tokenizer gives id"):
        load_memorized(settings, SimpleNamespace(vocab_size=5, max_position_embeddings=64), tokenizer)
    long = ProductionSettings(memorized=str(path), text_column="passage")
    with pytest.raises(
        UserError, match=f"{name}: none of its 3 passages has the 72 tokens .* the longest has"
    ) as error:
        load_memorized(long, config, tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "between, said", [(" ", "4 of its {} tokens are used, the first 4 of each of 1"), ("\n\n", "")]
)
def test_text_that_is_one_long_passage_is_said(between, said, tmp_path, caplog):
    tokenizer, path = train_tokenizer(MEMORIES * 9, 280), tmp_path / "m.txt"
    passage = tokenizer.decode(tokenize(tokenizer, MEMORIES[:1])[0][:6])
    path.write_text(between.join([passage] * 5))
    text_token_set(str(path), "text", tokenizer, 4)
    total = len(tokenize(tokenizer, [path.read_text()])[0])
    assert said.format(total) in caplog.text and bool(said) == ("put blank lines" in caplog.text)
