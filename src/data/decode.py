"""Token ids as readable text, for numbers and text alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinymem.data import numbers
from tinymem.data.chunks import load_tokenizer
from tinymem.data.settings import DataSettings

Decoder = Callable[[Sequence[int]], str]


def decoder(settings: DataSettings, cache_dir: str | Path | None) -> Decoder:
    """Return a function from token ids to one line of printable text.

    Number sequences show pads as `_`. Text shows a line break as ⏎, a tab as ⇥, and an invalid byte as �;
    everything else, spaces included, is unchanged.
    """
    tokenizer = load_tokenizer(settings, cache_dir)
    if tokenizer is None:
        return numbers.decode
    return text_decoder(tokenizer)


def text_decoder(tokenizer: Any) -> Decoder:
    """Return the same for a tokenizer; without one, token ids are shown as numbers."""
    if tokenizer is None:
        return lambda tokens: "".join(f"{int(token)} " for token in tokens)
    return lambda tokens: printable(tokenizer.decode([int(token) for token in tokens]))


def printable(text: str) -> str:
    """Return the text on one line, without characters that move the cursor."""
    text = text.translate({ord("\n"): "⏎", ord("\t"): "⇥"})
    return "".join(character if character.isprintable() else "�" for character in text)
