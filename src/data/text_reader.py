"""Text in addition to a run's data, as some methods need: token ids or a corpus, in rows like the run's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tinymem.data.chunks import split_by_document
from tinymem.data.corpus import Corpus, find_corpus
from tinymem.data.production import begun, check_ids, cut, text_rows, unbegun
from tinymem.data.settings import DataSettings
from tinymem.data.token_sets import KINDS, read_token_set
from tinymem.errors import UserError


@dataclass(frozen=True)
class TextReader:
    """Turns text into rows of a model's token ids.

    tokenizer   the model's; None: only files of token ids can be read
    begin       the ids at the beginning of every row (<bos>)
    """

    tokenizer: Any = None
    begin: tuple[int, ...] = ()
    _known: dict[tuple, torch.Tensor] = field(default_factory=dict)  # text is tokenized only once for all strengths

    def rows(self, flag: str, place: str, length: int, count: int, vocabulary_size: int) -> torch.Tensor:
        """Return the text at a path as rows (rows, length), int32: all rows of token ids, or up to `count` of a corpus.

        Token ids in rows of another length are read as one stream and cut again. Only the training documents of a
        corpus are read (`split_by_document`), since its other documents may be test text. Raise UserError, naming the
        flag or file, for a path that does not exist, ids outside the vocabulary, and text without a tokenizer.
        """
        key = (place, length, count)
        if key not in self._known:
            own = length - len(self.begin)
            if holds_ids(place):
                rows = cut(unbegun(read_token_set(place, vocabulary_size).tokens, self.begin), own)
            else:
                rows = self._text(flag, place, own, count)
                check_ids(flag, vocabulary_size, rows)
            self._known[key] = begun(rows, self.begin)
        return self._known[key]

    def _text(self, flag: str, place: str, length: int, count: int) -> torch.Tensor:
        if self.tokenizer is None:
            raise UserError(
                f"{flag} {place}: there is no tokenizer of this model to read text with; give token ids "
                f"({', '.join(KINDS)})"
            )
        documents = split_by_document(_corpus(flag, place).documents())[0]
        return text_rows(self.tokenizer, documents, length, count)


def content_digest(flag: str, place: str) -> str:
    """Return 16 hexadecimal digits that identify the text at a path by content. Raise UserError if there is no text."""
    return read_token_set(place).fingerprint if holds_ids(place) else _corpus(flag, place).digest


def holds_ids(place: str) -> bool:
    """Return whether a path is a file of token ids, not text."""
    return Path(place).suffix in KINDS


def _corpus(flag: str, place: str) -> Corpus:
    return find_corpus(DataSettings(data_name="wiki", corpus=place), flag)
