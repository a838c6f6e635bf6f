"""What a model writes freely after a few prompts, beside what was planted there: kept as token ids, shown as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from tinymem.data.dataset import Artifacts, evenly_spaced
from tinymem.metrics.probe import Probe

ROWS = 12  # as many as a person reads
NOTHING = -1  # no token: after a prompt's end, after the context, and where nothing counts
PARTS = ("prompt", "planted", "written")

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Span:
    """Adjacent tokens as text. differs: whether they are other tokens than the planted ones at the same positions."""

    text: str
    differs: bool = False


@dataclass(frozen=True)
class Continuation:
    """What a model writes after a prompt.

    spans     its text, in parts that agree with the planted one and parts that differ, in turn
    first     the number, from 1, of the first token that differs; None: all are as planted
    agreeing  how many of the `length` tokens are as planted, position by position
    """

    spans: tuple[Span, ...]
    first: int | None
    agreeing: int
    length: int


@dataclass(frozen=True)
class Example:
    """A prompt, the planted continuation, and the model's."""

    prompt: str
    planted: str
    written: Continuation


def continuations(probe: Probe, artifacts: Artifacts, decode: Decode) -> list[Example]:
    """Return what the probe's model writes after each prompt. decode: token ids -> printable text."""
    return kept_examples(example_tokens(probe, artifacts, "given"), decode)


def example_tokens(probe: Probe, artifacts: Artifacts, split: str) -> dict[str, torch.Tensor]:
    """Return the examples as token ids, to keep with a record: examples.SPLIT.PART -> int32 (A, tokens).

    PART is prompt, planted or written; -1 is no token. One greedy generation, which the probe keeps.
    """
    targets, loss_mask = probe.targets(artifacts)
    columns = torch.arange(artifacts.clean.shape[1])[: int(artifacts.prompt_end.max()) if len(artifacts) else 0]
    prompts = artifacts.clean[:, : len(columns)].long()
    parts = (
        prompts.masked_fill(columns >= artifacts.prompt_end[:, None], NOTHING),
        targets.masked_fill(~loss_mask, NOTHING),
        probe.generated(artifacts).masked_fill(~loss_mask, NOTHING),
    )
    return {f"examples.{split}.{part}": tokens.int() for part, tokens in zip(PARTS, parts)}


def sample(artifacts: Artifacts) -> Artifacts:
    """Return at most ROWS sequences, evenly spaced, always the same ones, none twice."""
    rows = {row.tobytes(): number for number, row in reversed(list(enumerate(artifacts.planted.numpy())))}
    distinct = artifacts.select(torch.tensor(sorted(rows.values()), dtype=torch.long))
    return distinct.select(evenly_spaced(len(distinct), ROWS))


def kept_split(values: Mapping[str, torch.Tensor]) -> str | None:
    """Return the split of the examples among a record's values; None without examples."""
    return next((name.split(".")[1] for name in values if name.startswith("examples.")), None)


def kept_examples(values: Mapping[str, torch.Tensor], decode: Decode) -> list[Example]:
    """Return the examples among a record's values; empty without any."""
    return [_example(*row, decode) for row in _rows(values)]


def _rows(values: Mapping[str, torch.Tensor]) -> list[tuple[list[int], list[int], list[int]]]:
    split = kept_split(values)
    return [] if split is None else list(zip(*(values[f"examples.{split}.{part}"].tolist() for part in PARTS)))


def _example(prompt: list[int], planted: list[int], written: list[int], decode: Decode) -> Example:
    pairs = [(token, goal) for token, goal in zip(written, planted) if goal != NOTHING]
    differs = [token != goal for token, goal in pairs]
    first = differs.index(True) + 1 if any(differs) else None
    spans = _spans([token for token, _ in pairs], differs, decode)
    found = Continuation(spans, first, differs.count(False), len(pairs))
    return Example(_text(prompt, decode), _text(planted, decode), found)


def _spans(tokens: list[int], differs: list[bool], decode: Decode) -> tuple[Span, ...]:
    """Cut the text where tokens begin or cease to differ; the spans are the whole text, in order.

    Decoding each span alone would not do: some tokenizers drop a leading space.
    """
    whole, spans, tokens_done, text_done = _text(tokens, decode), [], 0, 0
    for differ, run in groupby(differs):
        tokens_done += len(list(run))
        end = len(whole) if tokens_done == len(tokens) else len(_text(tokens[:tokens_done], decode))
        end = max(end, text_done)
        spans.append(Span(whole[text_done:end], differ))
        text_done = end
    return tuple(spans)


def _text(tokens: list[int], decode: Decode) -> str:
    return decode([token for token in tokens if token != NOTHING])
