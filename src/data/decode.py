"""Token ids as text that a person can read, whatever they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tinymem.data import numbers
from tinymem.data.chunks import load_tokenizer
from tinymem.data.settings import DataSettings

Decoder = Callable[[Sequence[int]], str]


def decoder(settings: DataSettings, cache_dir: str | Path | None) -> Decoder:
    """A function from token ids to one line of printable text.

    Number sequences are written as they are, pads as `_`. In text a line break shows as ⏎, a tab as ⇥, a byte that is
    no character by itself as �; the rest, spaces included, is the text itself.
    """
    tokenizer = load_tokenizer(settings, cache_dir)
    if tokenizer is None:
        return numbers.decode
    return lambda tokens: printable(tokenizer.decode([int(token) for token in tokens]))


def printable(text: str) -> str:
    """The text on one line, without characters that move the cursor."""
    text = text.translate({ord("\n"): "⏎", ord("\t"): "⇥"})
    return "".join(character if character.isprintable() else "�" for character in text)
