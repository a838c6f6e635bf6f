"""Other text as rows like a run's own: token ids and corpora, <bos>, and every way in which it can be wrong."""

import json
import shutil

import pytest
import torch

from tinymem.data.chunks import split_by_document
from tinymem.data.corpus import split_documents
from tinymem.data.production import text_rows
from tinymem.data.text_reader import TextReader, content_digest
from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.data.tokenizer import train_tokenizer
from tinymem.errors import UserError

FLAG, LENGTH, VOCABULARY = "--factor_data", 6, 300
DOCUMENTS = [f"document {number} tells of river {number} and the sea\n" * 3 for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, VOCABULARY)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path


@pytest.fixture
def token_file(tmp_path):
    """token_file(rows): the name of a file of these token ids."""
    return lambda rows: str(write_token_set(tmp_path / "ids.safetensors", TokenSet(rows.int(), {})))


def rows_of(place, reader=TextReader(), count=100, length=LENGTH, vocabulary=VOCABULARY):
    return TextReader(reader.tokenizer, reader.begin).rows(FLAG, str(place), length, count, vocabulary)


def test_rows_of_the_runs_length_are_taken_as_they_are(token_file):
    tokens = torch.arange(30).view(5, 6)
    assert rows_of(token_file(tokens)).tolist() == tokens.tolist()
    begun = torch.cat([torch.full((5, 2), 7), tokens[:, :4]], 1)
    assert rows_of(token_file(begun), TextReader(None, (7, 7))).tolist() == begun.tolist()


def test_rows_of_another_length_are_one_stream_and_get_bos(token_file):
    file = token_file(torch.arange(20).view(2, 10))
    assert rows_of(file).tolist() == torch.arange(18).view(3, 6).tolist()
    assert rows_of(file, TextReader(None, (299,)))[1].tolist() == [299, 5, 6, 7, 8, 9]
    with_bos = token_file(
        torch.cat([torch.full((2, 1), 299), torch.arange(20).view(2, 10)], 1)
    )  # cut again, without it
    assert rows_of(with_bos, TextReader(None, (299,))).tolist() == rows_of(file, TextReader(None, (299,))).tolist()
    assert rows_of(token_file(torch.arange(3).view(1, 3))).shape == (0, 6)


@pytest.mark.parametrize("begin", [(), (299,)])
def test_a_corpus_gives_rows_of_its_training_documents(corpus, tokenizer, begin):
    documents, held_out = split_by_document(split_documents(DOCUMENTS))
    own = text_rows(tokenizer, documents, LENGTH - len(begin))
    found = rows_of(corpus, TextReader(tokenizer, begin), count=10**6)
    assert found[:, len(begin) :].tolist() == own.tolist() and held_out and found.dtype == torch.int32
    assert (found[:, : len(begin)] == 299).all() and found.shape[1] == LENGTH
    assert rows_of(corpus, TextReader(tokenizer, begin), count=7).tolist() == found[:7].tolist()


def test_text_is_tokenized_once(corpus, tokenizer):
    reader = TextReader(tokenizer)
    first = reader.rows(FLAG, str(corpus), LENGTH, 10, VOCABULARY)
    assert reader.rows(FLAG, str(corpus), LENGTH, 10, VOCABULARY) is first
    assert len(reader.rows(FLAG, str(corpus), LENGTH, 9, VOCABULARY)) == 9


def test_content_and_not_the_place_is_named(corpus, token_file, tmp_path):
    tokens = torch.arange(12).view(2, 6)
    torch.save(tokens, tmp_path / "same.pt")
    digest = content_digest(FLAG, token_file(tokens))
    assert content_digest(FLAG, str(tmp_path / "same.pt")) == digest != content_digest(FLAG, token_file(tokens + 1))
    moved = shutil.copy(corpus, tmp_path / "moved.jsonl")
    assert content_digest(FLAG, moved) == content_digest(FLAG, str(corpus)) != digest
    (tmp_path / "moved.jsonl").write_text(corpus.read_text() + '{"text": "more"}\n')
    assert content_digest(FLAG, moved) != content_digest(FLAG, str(corpus))
    assert content_digest(FLAG, "builtin") not in (digest, content_digest(FLAG, "hub"))


def test_bad_places_are_one_line(corpus, token_file, tokenizer, tmp_path):
    ids, missing = token_file(torch.arange(12).view(2, 6)), tmp_path / "missing"
    (tmp_path / "text.doc").write_text("a")
    cases = [
        (ids, TextReader(), 11, f"{ids}: token id 11 is outside the model's vocabulary of 11"),
        (corpus, TextReader(), VOCABULARY, f"{FLAG} {corpus}: there is no tokenizer of this model to read text with"),
        (corpus, TextReader(tokenizer), 40, f"{FLAG}: the tokenizer gives id "),
        (tmp_path / "text.doc", TextReader(tokenizer), VOCABULARY, f"{FLAG} {tmp_path}/text.doc: unknown kind of file"),
        (f"{missing}.txt", TextReader(tokenizer), VOCABULARY, f"{FLAG} {missing}.txt: no such file or folder"),
        (f"{missing}.pt", TextReader(tokenizer), VOCABULARY, f"{missing}.pt: no such file"),
    ]
    for place, reader, vocabulary, message in cases:
        with pytest.raises(UserError) as error:
            rows_of(place, reader, vocabulary=vocabulary)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    for place in (f"{missing}.txt", f"{missing}.pt", str(tmp_path / "text.doc")):
        with pytest.raises(UserError, match=place):
            content_digest(FLAG, place)
