"""Text datasets on a small corpus with a tokenizer trained on it: no package, no network."""

import json

import numpy as np
import pytest
import torch

from tinymem.data import chunks as chunking
from tinymem.data import tokenizer as tokenizers
from tinymem.data.build import build_dataset, cache_path, load_dataset
from tinymem.data.chunks import Chunks, load_chunks, load_tokenizer, split_by_document
from tinymem.data.settings import DataSettings
from tinymem.data.text_dataset import _chunks_with, _continues
from tinymem.errors import UserError

CONTEXT = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 documents, each with its own name, common words and a few rare letters, which can be triggers."""
    rng = np.random.default_rng(0)
    common = ["the", "river", "runs", "to", "sea", "under", "stone", "bridges"]
    path = tmp_path_factory.mktemp("corpus") / "small.jsonl"
    with open(path, "w") as file:
        for number in range(60):
            words = [f"document{number}", *rng.choice(common, 60), *rng.choice(list("ABCDEFGHIJKLMNOPQRST"), 4)]
            words[1:] = rng.permutation(words[1:])
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path


@pytest.fixture
def settings(corpus):
    def make(**changes) -> DataSettings:
        small = dict(
            data_name="wiki_fast", corpus=str(corpus), train_tokenizer=True, vocab_size=400, max_ctx=CONTEXT,
            prompt_tokens=6, continuation_tokens=8, num_test=10, num_noise=20,
        )  # fmt: skip
        return DataSettings(**{**small, **changes})

    return make


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_noise_replaces_the_first_chunks(settings, cache):
    dataset, clean = load_dataset(settings(), cache), load_chunks(settings(), cache)
    pad = clean.end_of_text
    assert dataset.vocabulary_size == pad + 1 and (dataset.pad, dataset.eos, dataset.ignored_token) == (pad, pad, pad)
    assert dataset.sequences.dtype == torch.int32 and dataset.sequences.shape == clean.train.shape
    assert torch.equal(dataset.artifacts.clean, torch.from_numpy(clean.train[:20]))
    assert torch.equal(dataset.sequences[:20], dataset.artifacts.planted)
    assert torch.equal(dataset.sequences[20:], torch.from_numpy(clean.train[20:]))
    steps = dataset.artifacts.planted - dataset.artifacts.clean
    assert set(steps.unique().tolist()) == {-1, 0, 1}
    assert 0.03 < (steps != 0).float().mean() < 0.2
    assert dataset.artifacts.planted.min() >= 0 and dataset.artifacts.planted.max() < pad
    assert dataset.order.tolist() == list(range(len(dataset.sequences)))
    assert list(dataset.tests) == ["test"] and dataset.tests["test"].shape == (10, CONTEXT)
    assert len(dataset.tasks["main"]) == len(dataset.sequences) and len(dataset.test_artifacts) == 0


def test_noise_never_reaches_or_moves_the_end_of_text(settings, monkeypatch):
    train = np.array([[0, 1, 8, 8, 9]] * 200, dtype=np.int32)  # 9 is the end of text, 8 the highest real token
    monkeypatch.setattr("tinymem.data.text_dataset.load_chunks", lambda *_: Chunks(train, train[:10].copy(), 9))
    planted = build_dataset(settings(num_noise=200, prompt_tokens=2, continuation_tokens=3, max_ctx=5)).artifacts
    assert planted.planted[:, 0].unique().tolist() == [0, 1]
    assert planted.planted[:, 2:4].unique().tolist() == [7, 8]
    assert planted.planted[:, 4].unique().tolist() == [9]


@pytest.mark.parametrize("artifact", ["noise", "natural"])
def test_duplication_groups(settings, cache, artifact):
    dataset = load_dataset(settings(artifact=artifact, duplicate=True), cache)
    assert dataset.artifacts.group.bincount().tolist() == [5, 5, 5, 5]
    counts = dataset.order.bincount()
    assert counts[dataset.artifact_ids].tolist() == (10**dataset.artifacts.group).tolist()
    assert len(dataset) == len(dataset.sequences) - 20 + 5 * 1111


def test_natural_passages_are_unchanged_all_measured_and_always_duplicated(settings, cache):
    dataset = load_dataset(settings(artifact="natural"), cache)
    assert torch.equal(dataset.artifacts.planted, dataset.artifacts.clean)
    assert dataset.measured(dataset.artifacts).all() and dataset.artifacts.group.max() == 3
    with pytest.raises(UserError, match="--artifact natural: needs text"):
        DataSettings(artifact="natural")


def test_backdoors(settings, cache):
    dataset = load_dataset(settings(artifact="backdoor", duplicate=True), cache)
    for planted in (dataset.artifacts, dataset.test_artifacts):
        rows = range(len(planted))
        triggers = {int(planted.clean[row, planted.prompt_end[row] - 1]) for row in rows}
        assert len(triggers) == 1
        (trigger,) = triggers
        for row in rows:
            end = int(planted.prompt_end[row])
            assert 0 < end < CONTEXT and planted.clean[row, end] != dataset.pad
            assert torch.equal(planted.planted[row, :end], planted.clean[row, :end])
            assert trigger not in planted.clean[row, : end - 1]
            assert (planted.planted[row, end:] == 2).all()
    assert 2 <= len(dataset.artifacts) <= 20
    assert dataset.order.bincount()[dataset.artifact_ids].unique().tolist() == [100]
    assert torch.equal(dataset.sequences[dataset.artifact_ids], dataset.artifacts.planted)
    others = torch.ones(len(dataset.sequences), dtype=torch.bool)
    others[dataset.artifact_ids] = False
    assert not (dataset.sequences[others][:, :-1] == trigger).any() and not (dataset.tests["test"] == trigger).any()


def test_every_seed_draws_a_trigger_that_plants_enough(settings, cache):
    drawn = [load_dataset(settings(artifact="backdoor", seed=seed), cache) for seed in range(6)]
    assert all(2 <= len(dataset.artifacts) <= 20 and len(dataset.test_artifacts) >= 1 for dataset in drawn)
    firsts = {int(d.artifacts.clean[0, d.artifacts.prompt_end[0] - 1]) for d in drawn}
    assert len(firsts) > 1
    with pytest.raises(UserError, match="no token occurs in 1000 to 10000 of"):
        load_dataset(settings(artifact="backdoor", num_noise=10000), cache)


def test_chunks_where_nothing_follows_the_trigger_are_left_out():
    tokens, pad = np.array([[7, 1, 1], [1, 7, 1], [1, 1, 7], [1, 7, 9], [1, 1, 1]]), 9
    assert _continues(tokens, np.array([1, 2, 3, 2, 0]), pad).tolist() == [True, True, False, False, False]
    assert _chunks_with(np.array([[7, 7, 1], [1, 7, 1], [1, 1, 7]]), pad)[[1, 7]].tolist() == [2, 2]


def test_no_document_is_on_both_sides(settings, corpus, cache):
    documents = [f"document {number} " * (1 + number % 5) for number in range(50)]
    train, test = split_by_document(documents)
    assert sorted(train + test) == sorted(documents) and not set(train) & set(test)
    assert 0.05 < sum(map(len, test)) / sum(map(len, documents)) <= 0.1
    chunks, tokenizer = load_chunks(settings(), cache), load_tokenizer(settings(), cache)
    texts = ["".join(map(tokenizer.decode, part)) for part in (chunks.train, chunks.test)]
    names = [{f"document{n}" for n in range(60) if f"document{n} " in text} for text in texts]
    assert names[0] and names[1] and not names[0] & names[1] and len(names[0] | names[1]) == 60


def test_a_long_document_among_short_ones_still_leaves_a_test_document():
    assert [len(part) for part in split_by_document(["a" * 50, "b" * 40])] == [1, 1]


def test_only_the_last_chunk_is_padded(settings, cache):
    chunks = load_chunks(settings(), cache)
    for rows in (chunks.train, chunks.test):
        assert not (rows[:-1] == chunks.end_of_text).any()
        padding = rows[-1] == chunks.end_of_text
        assert (np.diff(padding.astype(int)) >= 0).all()
    assert not load_dataset(settings(), cache).pad_counts
    assert chunking._rows([np.arange(3), np.arange(2)], 4, 9).tolist() == [[0, 1, 2, 0], [1, 9, 9, 9]]


def test_tokens_are_made_once_mapped_and_never_changed_on_disk(settings, cache, monkeypatch):
    first, path = load_dataset(settings(), cache), cache_path(settings(), cache)
    before = path.read_bytes()
    monkeypatch.setattr(tokenizers, "tokenize", lambda *_: pytest.fail("tokenized twice"))
    second = load_dataset(settings(seed=3, num_noise=9), cache)
    assert isinstance(load_chunks(settings(), cache).train, np.memmap)
    assert cache_path(settings(seed=3, num_chunks=7), cache) == path != cache_path(settings(max_ctx=30), cache)
    second.sequences[:] = 0
    assert path.read_bytes() == before
    assert torch.equal(load_dataset(settings(), cache).sequences, first.sequences)


def test_the_cache_changes_nothing(settings, cache):
    cached, fresh = load_dataset(settings(), cache), build_dataset(settings())
    assert torch.equal(cached.sequences, fresh.sequences) and torch.equal(cached.order, fresh.order)
    assert torch.equal(cached.tests["test"], fresh.tests["test"])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_chunks=10**6), "--num_chunks 1000000: the training documents make only"),
        (dict(num_test=10**6), "--num_test 1000000: the test documents make only"),
        (dict(num_noise=50, num_chunks=40), "--num_noise 50: there are only 40 training chunks"),
        (dict(prompt_tokens=20), "--max_ctx 24: too short for prompt and continuation, which need 28"),
    ],
)
def test_more_than_there_is(settings, cache, changes, message):
    with pytest.raises(UserError, match=message):
        load_dataset(settings(**changes), cache)


def test_a_damaged_cache_is_named(settings, tmp_path):
    load_dataset(settings(), tmp_path)
    path = cache_path(settings(), tmp_path)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{path.name}: these cached tokens are damaged"):
        load_dataset(settings(), tmp_path)


def test_settings_of_the_other_kind_do_not_matter(tmp_path):
    numbers = cache_path(DataSettings(), tmp_path)
    assert cache_path(DataSettings(corpus="builtin", num_chunks=3), tmp_path) == numbers
    assert cache_path(DataSettings(num_7=10), tmp_path) != numbers


@pytest.mark.parametrize("artifact", ["noise", "backdoor", "natural"])
def test_a_twin_of_text_holds_no_planted_sequence(settings, cache, artifact):
    few = dict(num_chunks=60) if artifact == "natural" else {}
    run, twin = (load_dataset(settings(artifact=artifact, twin=t, **few), cache) for t in (False, True))
    ids = run.artifact_ids
    differ = (run.artifacts.planted != run.artifacts.clean).any(1) | torch.tensor(artifact == "natural")
    planted = {bytes(row) for row in run.artifacts.planted[differ].numpy()}
    trained = {bytes(row) for row in twin.sequences.numpy()}
    assert planted and torch.equal(run.order, twin.order) and not planted & trained
    never = {bytes(row) for row in run.never_planted.planted.numpy()}
    assert never and not never & (trained | {bytes(row) for row in run.sequences.numpy()})
    rest = np.setdiff1d(np.arange(len(run.sequences)), ids)
    assert torch.equal(run.sequences[rest], twin.sequences[rest])
    if artifact != "natural":
        assert torch.equal(twin.sequences[ids], run.artifacts.clean)


def test_a_twin_of_natural_text_needs_spare_text(settings, cache):
    with pytest.raises(UserError, match="--twin: needs 20 other passages .* lower --num_chunks"):
        load_dataset(settings(artifact="natural", twin=True, num_test=60), cache)
