"""Text as rows of token ids: split by document, tokenized once, stored as memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tinymem import files
from tinymem.data import tokenizer as tokenizers
from tinymem.data.corpus import Corpus, find_corpus, tokenizer_sha256
from tinymem.data.dataset import SPLIT_SEED
from tinymem.data.settings import DataSettings
from tinymem.errors import reading
from tinymem.inputs import check_file

FORMAT = 1  # increase when the same settings produce different tokens; older caches are then ignored
TEST_FRACTION = 0.1  # of the characters; documents stay whole


@dataclass(frozen=True)
class Chunks:
    """A tokenized corpus. T = context length.

    train, test   int32 (rows, T) from different documents; the last row of each is padded with end_of_text. With a
                  cache they are memory-mapped: writing to them changes memory only (copy on write)
    end_of_text   the last id of the vocabulary, used as pad, bos and eos
    """

    train: np.ndarray
    test: np.ndarray
    end_of_text: int


def load_chunks(settings: DataSettings, cache_dir: str | Path | None) -> Chunks:
    """Return the corpus as chunks of max_ctx tokens, from the cache, or tokenize and cache it.

    `cache_dir` None: tokenize in memory. Raise UserError for a corpus or a cache that cannot be read.
    """
    corpus = find_corpus(settings)
    documents = cache(lambda: split_by_document(corpus.documents()))  # read once, and only if something is missing
    tokenizer = cache(lambda: _tokenizer(settings, corpus, cache_dir, documents))
    gpt2 = not settings.train_tokenizer and settings.tokenizer is None
    end_of_text = tokenizers.GPT2_END_OF_TEXT if gpt2 else tokenizer().eos_token_id

    def part(number: int) -> np.ndarray:
        return _rows(tokenizers.tokenize(tokenizer(), documents()[number]), settings.max_ctx, end_of_text)

    if cache_dir is None:
        return Chunks(part(0), part(1), end_of_text)
    context = settings.max_ctx
    train, test = (
        _mapped(path, context, end_of_text + 1, lambda: part(number))
        for number, path in enumerate(chunk_paths(settings, cache_dir))
    )
    return Chunks(train, test, end_of_text)


def chunk_paths(settings: DataSettings, cache_dir: str | Path) -> tuple[Path, Path]:
    """Return the cache files of training and test chunks, named by corpus, tokenizer and a hash of the settings."""
    corpus = find_corpus(settings)
    tokenizer = f"bpe{settings.vocab_size}" if settings.train_tokenizer else tokenizers.GPT2
    if (own := settings.tokenizer_path) is not None:
        tokenizer = f"tokenizer{tokenizer_sha256(settings, own)[:16]}"
    key = dict(format=FORMAT, corpus=corpus.fingerprint, tokenizer=tokenizer, max_ctx=settings.max_ctx)
    stem = f"{corpus.name}_{tokenizer}_{files.digest(key)}"
    return Path(cache_dir) / f"{stem}.train.npy", Path(cache_dir) / f"{stem}.test.npy"


def load_tokenizer(settings: DataSettings, cache_dir: str | Path | None):
    """Return GPT-2's tokenizer, the one of --tokenizer, or one trained on the corpus; None for number sequences."""
    if not settings.is_text:
        return None
    if not settings.train_tokenizer:
        return _given_tokenizer(settings)
    corpus = find_corpus(settings)
    return _tokenizer(settings, corpus, cache_dir, lambda: split_by_document(corpus.documents()))


def _given_tokenizer(settings: DataSettings):
    """Return the tokenizer of --tokenizer, or GPT-2's. Raise UserError if it is not the one the settings name."""
    if (path := settings.tokenizer_path) is None:
        return tokenizers.gpt2_tokenizer()
    tokenizer_sha256(settings, path)
    return tokenizers.read_tokenizer(path)


def _tokenizer(settings: DataSettings, corpus: Corpus, cache_dir: str | Path | None, documents: Callable):
    """Return the tokenizer; train it on the training documents only. documents() -> (training, test)."""
    if not settings.train_tokenizer:
        return _given_tokenizer(settings)
    key = dict(format=FORMAT, corpus=corpus.fingerprint, vocab_size=settings.vocab_size)
    name = f"{corpus.name}_bpe{settings.vocab_size}_{files.digest(key)}.tokenizer.json"
    path = None if cache_dir is None else Path(cache_dir) / name
    return tokenizers.cached_tokenizer(path, lambda: tokenizers.train_tokenizer(documents()[0], settings.vocab_size))


def split_by_document(documents: list[str]) -> tuple[list[str], list[str]]:
    """Return training and test documents, shuffled with the same permutation in every run.

    The test documents hold TEST_FRACTION of the characters, as closely as whole documents allow.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(documents))
    room = TEST_FRACTION * sum(map(len, documents))
    train: list[str] = []
    test: list[str] = []
    for number in order:
        fits = len(documents[number]) <= room
        (test if fits else train).append(documents[number])
        room -= len(documents[number]) if fits else 0
    if not test:
        shortest = min(range(len(train)), key=lambda position: len(train[position]))
        test.append(train.pop(shortest))
    return train, test


def _rows(streams: list[np.ndarray], context: int, pad: int) -> np.ndarray:
    """Concatenate the documents' tokens and cut them into rows; pad the last one. Return int32 (rows, context)."""
    rows = np.full((-(-sum(map(len, streams)) // context), context), pad, dtype=np.int32)
    flat, position = rows.reshape(-1), 0
    for stream in streams:
        flat[position : position + len(stream)] = stream
        position += len(stream)
    return rows


def _mapped(path: Path, context: int, ids: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array (rows, context) in the file, mapped copy-on-write. Make and write it if the file is missing.

    ids: number of token ids, including end_of_text. Raise UserError if the file is damaged or has other ids.
    """
    if not path.exists():
        files.write_file(path, lambda temporary: _save(temporary, make()))
    check_file(path, share=float("inf"))
    with reading(path, "these cached tokens are damaged ({why}); delete the file and run again"):
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype != np.int32 or array.shape[1:] != (context,):
            raise ValueError(f"not int32 rows of {context}")
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < ids:
            raise ValueError(f"ids outside 0 to {ids - 1}")
    return array


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would append .npy to a file name
        np.save(file, array)
