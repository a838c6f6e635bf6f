"""Passages to plant: of other documents than the text to retain and to test on, with different prompts, all checked."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tinymem.data.corpus import local_corpus
from tinymem.data.passages import PassageSettings, distinct_prompts, draw_passages, load_passages
from tinymem.data.production import ProductionSettings
from tinymem.data.tokenizer import train_tokenizer
from tinymem.errors import UserError

LENGTH, PROMPT = 12, 4
DOCUMENTS = [" ".join(f"{letter}{word}" for word in range(60)) for letter in "abcdefghijklmnopqrstuvwxyz"]
SETTINGS = ProductionSettings(prompt_tokens=PROMPT, continuation_tokens=6, num_test=20, num_retain=30)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 300)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "letters.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path


@pytest.fixture
def corpus(path):
    return local_corpus(str(path), (), "text")


def letters(tokenizer, rows) -> set[str]:
    """The documents that these rows come from: each is written in a letter of its own."""
    return {character for row in rows.tolist() for character in tokenizer.decode(row) if character.isalpha()}


def test_no_document_is_in_two_sets(corpus, tokenizer):
    drawn = draw_passages(corpus, tokenizer, (40, 1000, 1000), LENGTH, PROMPT)
    found = [letters(tokenizer, rows) for rows in (drawn.planted, drawn.retain, drawn.test)]
    assert all(len(some) >= 8 for some in found)
    assert sum(map(len, found)) == len(set.union(*found)) == len(DOCUMENTS)


def test_windows_are_text_as_it_stands(corpus, tokenizer):
    drawn = draw_passages(corpus, tokenizer, (20, 10, 10), LENGTH, PROMPT)
    assert [rows.shape for rows in (drawn.planted, drawn.retain, drawn.test)] == [(20, 12), (10, 12), (10, 12)]
    assert all(any(tokenizer.decode(row) in text + "\n" for text in DOCUMENTS) for row in drawn.planted.tolist())


def test_the_seed_draws_other_windows_of_the_same_documents(corpus, tokenizer):
    sizes = (20, 1000, 1000)
    first, again, other = (draw_passages(corpus, tokenizer, sizes, LENGTH, PROMPT, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.planted, again.planted) and np.array_equal(first.test, again.test)
    assert not np.array_equal(first.planted, other.planted)
    assert letters(tokenizer, first.retain) == letters(tokenizer, other.retain)


def test_a_prompt_has_one_continuation():
    rows = np.array([[1, 2, 3], [4, 5, 6], [1, 2, 9], [4, 5, 6], [0, 2, 3]])
    assert distinct_prompts(rows, 2).tolist() == [[1, 2, 3], [4, 5, 6], [0, 2, 3]]


def config(vocabulary=300, longest=64):
    own = SimpleNamespace(vocab_size=vocabulary, max_position_embeddings=longest)
    return SimpleNamespace(get_text_config=lambda: own)


def load(path, tokenizer, settings=SETTINGS, model=config(), **passages):
    return load_passages(
        PassageSettings(**{"plant": str(path), "plant_sequences": 15, "plant_tokens": LENGTH, **passages}),
        settings,
        model,
        tokenizer,
    )


def test_the_dataset_plants_retains_and_tests(path, tokenizer):
    data = load(path, tokenizer)
    dataset = data.dataset
    assert dataset.artifacts.planted.shape == (15, LENGTH) and dataset.artifacts.prompt_end.unique().tolist() == [
        PROMPT
    ]
    assert len(dataset.order) == 30 and len(dataset.tests["random"]) == 20 and dataset.continuation == 6
    assert data.identity["plant"].startswith("letters-") and data.identity["plant_sequences"] == 15
    assert load(path, tokenizer, plant_seed=1).identity != data.identity


@pytest.mark.parametrize(
    "passages, message",
    [
        (
            dict(plant_sequences=5000),
            "--plant_sequences 5000: a third of .*letters.jsonl holds only .* passages of 12 tokens",
        ),
        (dict(plant_tokens=9), "--plant_tokens 9: prompt and continuation need 10"),
        (dict(plant_tokens=100), "--plant_tokens: 100 tokens per sequence; this model takes at most 64"),
        (dict(plant="nowhere.txt"), "--plant nowhere.txt: no such file or folder"),
        (dict(tokenizer=None), "--plant: this model's folder has no tokenizer"),
        (dict(model=config(100)), "--plant: the tokenizer gives id 2.., the model has only 100 tokens"),
        (dict(settings=ProductionSettings(random="x.pt")), "--random: leave it out with --plant"),
    ],
)
def test_bad_input(path, tokenizer, passages, message):
    with pytest.raises(UserError, match=message):
        load(path, **{"tokenizer": tokenizer, **passages})


def test_three_documents_are_needed(tmp_path, tokenizer):
    (tmp_path / "two.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises(UserError, match="--plant .*two.jsonl: has 2 documents"):
        draw_passages(local_corpus(str(tmp_path / "two.jsonl"), (), "text", "--plant"), tokenizer, (1, 1, 1), 2, 1)
    (tmp_path / "line.txt").write_text("one two three")
    with pytest.raises(
        UserError, match="^--plant .*line.txt: is too short; give one with more text, in more than one line"
    ):
        draw_passages(local_corpus(str(tmp_path / "line.txt"), (), "text", "--plant"), tokenizer, (1, 1, 1), 2, 1)


def test_builtin_is_of_presidential_addresses():
    found = local_corpus("builtin", ("sotu",), "text").documents()
    assert len(found) > 200 and any("Fellow" in text[:200] for text in found)
