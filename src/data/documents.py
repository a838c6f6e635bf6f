"""Named documents to search: a user's text, a corpus, a Hugging Face dataset, or token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinymem.data import text_files
from tinymem.data.corpus import find_corpus, hub_or_cache, separate_texts, wikitext_articles
from tinymem.data.settings import DataSettings
from tinymem.data.token_sets import read_token_set
from tinymem.data.tokenizer import tokenize_in_turn
from tinymem.errors import UserError, first_line


@dataclass(frozen=True)
class Documents:
    """source: readable. names: one per document, as in "file.jsonl:3". content: texts, or int32 arrays of token ids."""

    source: str
    names: list[str]
    content: list

    @property
    def fingerprint(self) -> str:
        """The 16 hexadecimal digits that identify the content and its division into documents."""
        digest = hashlib.sha256()
        for document in self.content:
            data = document.encode() if isinstance(document, str) else document.tobytes()
            digest.update(f"{type(document).__name__} {len(data)} ".encode() + data)
        return digest.hexdigest()[:16]

    def share(self, worker: int, workers: int) -> Documents:
        """Return the documents of one worker, 1 ... workers. Every document belongs to one worker."""
        part = slice(worker - 1, None, workers)
        return Documents(self.source, self.names[part], self.content[part])

    def tokens(self, tokenizer) -> Iterator[np.ndarray]:
        """Yield the ids of each document, int32. Text is tokenized without special tokens, a few documents at once."""
        is_text = bool(self.content) and isinstance(self.content[0], str)
        yield from tokenize_in_turn(tokenizer, self.content) if is_text else self.content


def token_documents(path: str, vocabulary_size: int) -> Documents:
    """Return the rows of a file of token ids as documents. Raise UserError for a damaged file or invalid ids."""
    tokens = read_token_set(path, vocabulary_size).tokens.numpy()
    name = Path(path).name
    return Documents(name, [f"{name}:{number}" for number in range(1, len(tokens) + 1)], list(tokens))


def corpus_documents(corpus: str | None, text_column: str) -> Documents:
    """Return the documents of a path, "hub" or "builtin"; None: hub, or builtin if the hub cannot be reached.

    A .txt or .md file is one document, unless separator lines divide it (see docs/production.md) or it is WikiText. In
    .jsonl, every line is a document; in .parquet, every row. Blank texts are left out. Raise UserError for text that
    cannot be read.
    """
    settings = DataSettings(data_name="wiki", corpus=corpus, text_column=text_column)
    if settings.corpus_path is None:
        found = find_corpus(settings)
        return _named(found.name, {found.name: wikitext_articles(found.read())}, "--corpus")
    folder, paths = settings.corpus_path, text_files.corpus_files(settings.corpus_path)
    read = {}
    for path in paths:
        texts = text_files.read_texts(path, text_column)
        plain = path.suffix.lower() in text_files.PLAIN
        name = str(path.relative_to(folder)) if folder.is_dir() else path.name
        read[name] = separate_texts(texts, str(path)) if plain else texts
    return _named(folder.resolve().name, read, "--corpus")


def dataset_documents(name: str, config: str | None, split: str, text_column: str) -> Documents:
    """Return the rows of a Hugging Face dataset: a name on the hub, or in its cache, or a folder of data files.

    Raise UserError if it cannot be loaded or has no such column of text. Code in a dataset is never run.
    """
    from datasets import load_dataset

    try:
        with nullcontext() if Path(name).is_dir() else hub_or_cache():
            rows = load_dataset(name, config, split=split)
    except Exception as error:  # no network, unknown names, full disks: each raises a different type
        raise UserError(
            f"--dataset {name}: cannot be loaded ({first_line(error)}); --corpus PATH reads files"
        ) from None
    if text_column not in rows.column_names:
        raise UserError(f"--text_column {text_column}: --dataset {name} has only {', '.join(rows.column_names)}")
    texts = rows[text_column]
    if not all(isinstance(text, (str, type(None))) for text in texts):
        raise UserError(f"--text_column {text_column}: --dataset {name} holds no text there")
    return _named(name, {name: wikitext_articles(list(texts))}, "--dataset")


def _named(source: str, texts: dict[str, list], flag: str) -> Documents:
    found = {
        f"{name}:{number}": text
        for name, some in texts.items()
        for number, text in enumerate(some, start=1)
        if text is not None and text.strip()
    }
    if not found:
        raise UserError(f"{flag} {source}: is empty; give a source with text")
    return Documents(source, list(found), list(found.values()))
