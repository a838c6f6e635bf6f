"""Data for unlearning and measuring production models: memorized sequences and other text."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinymem.data.chunks import split_by_document
from tinymem.data.corpus import find_corpus
from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.data.memories import shares_tokens
from tinymem.data.settings import DataSettings
from tinymem.data.text_files import PLAIN, read_texts
from tinymem.data.token_sets import KINDS as TOKEN_KINDS
from tinymem.data.token_sets import TokenSet, read_token_set
from tinymem.data.tokenizer import beginning, bos_identity, tokenize, tokenize_in_turn
from tinymem.errors import UserError
from tinymem.inputs import check_file
from tinymem.options import option, settings

NO_PAD = -1  # every row is full
NOTES = ("test_rows_left_out", "test_rows", "retain_rows")  # results that only some records have
FETCHED = tuple(
    f"{name}.safetensors" for name in ("pythia-2.8b-deduped-v0", "pythia-6.9b-deduped", "pile_random_batch")
)  # the files that pythia_mem_data/fetch.py writes
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")

logger = logging.getLogger(__name__)


@settings
class ProductionSettings:
    """Data"""

    memorized: str | None = option(
        None,
        "file of memorized sequences: token ids (.safetensors or .pt; pythia_mem_data/fetch.py and find_memorized.py "
        "write them) or text (.txt: passages with blank lines between them; .jsonl: one a line, in --text_column)",
    )
    random: str | None = option(None, "file of random sequences: test and retain text; default: text of --corpus")
    corpus: str | None = option(
        None,
        "test and retain text: hub, builtin or a path (see memorization_in_toy_models.py); default: hub, or builtin "
        "if the hub cannot be reached",
    )
    text_column: str = option("text", "column of a .jsonl or .parquet corpus, and of a .jsonl of --memorized")
    prompt_tokens: int = option(32, "n of (n, k) memorization: tokens of the prompt", low=1)
    continuation_tokens: int = option(40, "k of (n, k) memorization: tokens the model must reproduce", low=1)
    bos: str = option(
        "auto",
        "whether every row begins with <bos>, before its own tokens; auto: if the model's tokenizer adds <bos>",
        choices=("auto", "yes", "no"),
    )
    num_test: int = option(1632, "random sequences to measure perplexity on; fewer if the text is too short", low=1)
    num_retain: int = option(1632, "random sequences to retain; fewer if the text is too short", low=1)

    def __post_init__(self) -> None:
        if self.random and self.corpus:
            raise UserError("--random and --corpus: give one of them, both name the test and retain text")

    @property
    def memorizes_text(self) -> bool:
        """Whether --memorized names a file of text, which needs a tokenizer."""
        return self.memorized is not None and self.memorized.lower().endswith((*PLAIN, ".jsonl"))

    @property
    def needed(self) -> int:
        """The number of tokens that a memorized sequence needs."""
        return self.prompt_tokens + self.continuation_tokens

    def check_files(self) -> None:
        """Raise UserError for a missing file; the message names the script that fetches it, if there is one."""
        for flag, path in (("--memorized", self.memorized), ("--random", self.random)):
            if path is not None and not Path(path).exists():
                remedy = "; pythia_mem_data/fetch.py fetches it" if Path(path).name in FETCHED else ""
                raise UserError(f"{flag} {path}: no such file{remedy}")
            if (
                path is not None
                and Path(path).suffix not in TOKEN_KINDS
                and not (path == self.memorized and self.memorizes_text)
            ):
                texts = f"text ({', '.join((*PLAIN, '.jsonl'))})" if flag == "--memorized" else "text with --corpus"
                raise UserError(
                    f"{flag} {path}: unknown kind; give a file of token ids ({', '.join(TOKEN_KINDS)}) or {texts}"
                )

    @property
    def sizes(self) -> dict[str, int]:
        """The settings that, together with the files, determine the data, as stored in records."""
        names = ("prompt_tokens", "continuation_tokens", "num_test", "num_retain")
        return {name: getattr(self, name) for name in names}

    @property
    def text(self) -> DataSettings:
        """The settings for the text that --corpus names."""
        return DataSettings(data_name="wiki", corpus=self.corpus, text_column=self.text_column)


@dataclass(frozen=True)
class ProductionData:
    """The dataset, the settings that identify it in a record, and further entries of the record.

    notes: results about rows that were left out. begin: the ids at the start of every row.
    """

    dataset: MemorizationDataset
    identity: dict[str, Any]
    notes: dict[str, Any]
    begin: tuple[int, ...]


def load_production(settings: ProductionSettings, config, tokenizer) -> ProductionData:
    """Return the data of a model with this config (transformers') and tokenizer (or None).

    Raise UserError for files that are missing, damaged or of another model, and for sequences that are too long.
    """
    begin = beginning(settings.bos, tokenizer, config)
    config = config.get_text_config()
    memorized = load_memorized(settings, config, tokenizer)
    tokens = begun(memorized.tokens, begin)
    length, needed = tokens.shape[1], len(begin) + settings.needed
    if length < needed:
        raise UserError(f"--memorized: <bos>, prompt and continuation need {needed} tokens; its rows have {length}")
    check_length("--memorized", length, config)
    test, retain, random_name = load_random(settings, length, config.vocab_size, tokenizer, begin)
    prompt_tokens = len(begin) + settings.prompt_tokens
    dataset = production_dataset(tokens, test, retain, config.vocab_size, prompt_tokens, settings.continuation_tokens)
    identity = {
        "memorized_data": memorized.fingerprint,
        "random_data": random_name,
        **settings.sizes,
        **bos_identity(begin),
    }
    notes = left_out(test, dataset) | fewer(settings, test, retain)
    return ProductionData(dataset, identity, notes, begin)


def left_out(test: torch.Tensor, dataset: MemorizationDataset) -> dict[str, int]:
    """Return a record's notes on test rows that were left out; empty if none were."""
    count = len(test) - len(dataset.tests["random"])
    return {"test_rows_left_out": count} if count else {}


def fewer(settings: ProductionSettings, test: torch.Tensor, retain: torch.Tensor) -> dict[str, int]:
    """Return a record's notes on test and retain rows, if there are fewer than requested, and log a warning.

    The notes are empty if there are enough rows.
    """
    found = {"num_test": len(test), "num_retain": len(retain)}
    short = {name: count for name, count in found.items() if count < getattr(settings, name)}
    if short:
        logger.warning(
            "the text has fewer rows than asked for: %s",
            ", ".join(f"{count} instead of --{name} {getattr(settings, name)}" for name, count in short.items()),
        )
    return {f"{name.removeprefix('num_')}_rows": count for name, count in short.items()}


def begun(rows: torch.Tensor, begin: tuple[int, ...]) -> torch.Tensor:
    """Return the rows (rows, T) with the ids `begin` before each, unless all rows already begin with them."""
    if not begin or unbegun(rows, begin) is not rows:
        return rows
    return torch.cat([torch.tensor(begin, dtype=rows.dtype).expand(len(rows), -1), rows], 1)


def unbegun(rows: torch.Tensor, begin: tuple[int, ...]) -> torch.Tensor:
    """Return the rows (rows, T) without the ids `begin` if all rows begin with them, otherwise unchanged."""
    head = torch.tensor(begin, dtype=rows.dtype)
    if begin and rows.shape[1] >= len(begin) and bool((rows[:, : len(begin)] == head).all()):
        return rows[:, len(begin) :]
    return rows


def cut(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Cut token ids of any shape, read as one stream, into rows (rows, length) and drop the rest at the end."""
    stream = tokens.flatten()
    return stream[: len(stream) // length * length].view(-1, length)


def check_length(flag: str, length: int, config) -> None:
    """Raise UserError for sequences longer than a model with this text config accepts."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise UserError(f"{flag}: {length} tokens per sequence; this model takes at most {longest}")


def load_memorized(settings: ProductionSettings, config, tokenizer=None) -> TokenSet:
    """Return the sequences of --memorized, given as token ids or text. tokenizer: the model's, to read text.

    Raise UserError if there are none or they do not fit this text config.
    """
    if settings.memorized is None:
        raise UserError(
            "--memorized: give a file of sequences that this model has memorized; pythia_mem_data/fetch.py fetches "
            "Pythia's, pythia_mem_data/find_memorized.py finds any model's"
        )
    settings.check_files()
    if settings.memorizes_text:
        found = text_token_set(settings.memorized, settings.text_column, tokenizer, settings.needed)
        check_ids("--memorized", config.vocab_size, found.tokens)
    else:
        found = read_token_set(settings.memorized, config.vocab_size, settings.needed)
    check_length("--memorized", found.tokens.shape[1], config)
    return found


def memorized_texts(path: str, column: str) -> list[str]:
    """Return passages of a text file: blocks between blank lines, or lines of .jsonl. Raise UserError if unreadable."""
    texts = read_texts(check_file(path), column)
    if not path.lower().endswith(".jsonl"):
        texts = [block.strip("\n") for block in BLANK_LINES.split(texts[0])]
    return [text for text in texts if text.strip()]


def text_token_set(path: str, column: str, tokenizer, length: int) -> TokenSet:
    """Return the first `length` tokens of each passage in a text file (see `memorized_texts`).

    Shorter passages are left out, with a warning. Another warning says if a plain text is a single longer passage, or
    if most of it lies beyond these tokens. Raise UserError without a tokenizer, or if no passage is left.
    """
    if tokenizer is None:
        raise UserError("--memorized: this model's folder has no tokenizer to read text with; give a file of token ids")
    streams = tokenize(tokenizer, memorized_texts(path, column))
    rows = [stream[:length] for stream in streams if len(stream) >= length]
    if not streams:
        raise UserError(f"--memorized {path}: is empty; give a file with passages")
    if not rows:
        longest = max(map(len, streams), default=0)
        raise UserError(
            f"--memorized {path}: none of its {len(streams)} passages has the {length} tokens of prompt and "
            f"continuation, the longest has {longest}; lower --prompt_tokens or --continuation_tokens"
        )
    if len(rows) < len(streams):
        logger.warning(
            "%s: %d of %d passages are left out: they have fewer than %d tokens",
            path, len(streams) - len(rows), len(streams), length,
        )  # fmt: skip
    used, total = length * len(rows), sum(map(len, streams))
    if not path.lower().endswith(".jsonl") and total > used and (len(streams) == 1 or total > 2 * used):
        logger.warning(
            "--memorized %s: %d of its %d tokens are used, the first %d of each of %d passages; put blank lines "
            "between passages", path, used, total, length, len(rows),
        )  # fmt: skip
    return TokenSet(torch.from_numpy(np.stack(rows)), {"file": Path(path).name})


def load_random(
    settings: ProductionSettings, length: int, vocabulary_size: int, tokenizer, begin: tuple[int, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Return test and retain text as rows of `length` tokens, int32, and a name that identifies the content.

    A file with rows of another length is read as one stream and cut again, test before retain, as the study does with
    2048 x 128 Pile tokens. In a corpus, test and retain text are different documents. Raise UserError for too little
    text.
    begin: the ids at the start of every row, included in its length.
    """
    own = length - len(begin)
    if settings.random is not None:
        settings.check_files()
        token_set = read_token_set(settings.random, vocabulary_size)
        tokens = unbegun(token_set.tokens, begin)
        test, retain = split_random(tokens, own, settings.num_test, settings.num_retain)
        return begun(test, begin), begun(retain, begin), token_set.fingerprint
    if tokenizer is None:
        raise UserError(
            "--corpus: this model's folder has no tokenizer that opens here to read text with; put its tokenizer there "
            "or give token ids with --random"
        )
    corpus = find_corpus(settings.text)
    retain_documents, test_documents = split_by_document(corpus.documents())
    test = begun(text_rows(tokenizer, test_documents, own, settings.num_test), begin)
    retain = begun(text_rows(tokenizer, retain_documents, own, settings.num_retain), begin)
    check_ids("--corpus", vocabulary_size, test, retain)
    if not len(test) or not len(retain):
        raise UserError(f"{corpus.given}: is too short for rows of {length} tokens; give one with more text")
    return test, retain, corpus.label


def split_random(
    tokens: torch.Tensor, length: int, num_test: int, num_retain: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return test and retain rows (rows, length): first test, then retain rows from the stream `tokens`.

    If there are fewer than num_test + num_retain rows, each set gets its share. Raise UserError for fewer than two
    rows.
    """
    rows = cut(tokens, length)
    if len(rows) < 2:
        raise UserError(f"--random: {tokens.numel()} tokens make {len(rows)} rows of {length}; at least two are needed")
    if len(rows) < num_test + num_retain:
        num_test = min(max(1, len(rows) * num_test // (num_test + num_retain)), len(rows) - 1)
        num_retain = len(rows) - num_test
    return rows[:num_test], rows[num_test : num_test + num_retain]


def text_rows(tokenizer, documents: list[str], length: int, count: int | None = None) -> torch.Tensor:
    """Return at most `count` consecutive rows of `length` tokens from these documents, without padding, int32."""
    parts, size = [torch.empty(0, dtype=torch.int32)], 0
    for ids in tokenize_in_turn(tokenizer, documents):
        parts.append(torch.from_numpy(ids))
        size += len(ids)
        if count is not None and size >= count * length:
            break
    rows = size // length if count is None else min(count, size // length)
    return torch.cat(parts)[: rows * length].view(rows, length)


def check_ids(flag: str, vocabulary_size: int, *parts: torch.Tensor) -> None:
    """Raise UserError, naming the flag, for ids from the tokenizer that the model does not have."""
    highest = max((int(rows.max()) for rows in parts if rows.numel()), default=0)
    if highest >= vocabulary_size:
        raise UserError(
            f"{flag}: the tokenizer gives id {highest}, the model has only {vocabulary_size} tokens; the tokenizer in "
            "its folder is another model's"
        )


def production_dataset(
    memorized: torch.Tensor,
    test: torch.Tensor,
    retain: torch.Tensor,
    vocabulary_size: int,
    prompt_tokens: int = 32,
    continuation_tokens: int = 40,
    never_planted: torch.Tensor | None = None,
) -> MemorizationDataset:
    """Return a dataset with memorized sequences as artifacts of kind "natural" and other text as test and retain sets.

    memorized, test, retain: token ids (rows, T), integers. never_planted: similar passages that the model never saw, if
    any.

    These rows are left out: memorized rows whose prompt and continuation repeat an earlier row, test rows that share
    `continuation_tokens` consecutive tokens with a memorized row, and retain rows that do so with a memorized or test
    row. Warnings count the first two kinds. Only the retain rows are training rows: a listed sequence that this model
    has not memorized is neither unlearned nor retained. Raise UserError if no test or no retain row is left.
    """
    memorized = _each_once(memorized, prompt_tokens + continuation_tokens)
    overlapping = shares_tokens(test, memorized, continuation_tokens)
    if overlapping.all():
        raise UserError(
            f"no test text is left: all of it has {continuation_tokens} consecutive tokens (--continuation_tokens) in "
            "common with memorized sequences; give more of it"
        )
    if overlapping.any():
        logger.warning(
            "%d of %d test rows are left out: they hold text that is to be forgotten (%d consecutive tokens of it)",
            int(overlapping.sum()), len(test), continuation_tokens,
        )  # fmt: skip
        test = test[~overlapping]
    never_planted = memorized[:0] if never_planted is None else never_planted
    never_planted = never_planted[~shares_tokens(never_planted, memorized, continuation_tokens)]
    retain = retain[~shares_tokens(retain, torch.cat([memorized, test]), continuation_tokens)]
    if not len(retain):
        raise UserError(
            f"no retain text is left: all of it has {continuation_tokens} consecutive tokens (--continuation_tokens) "
            "in common with memorized or test text; give more of it"
        )
    count, zeros = len(memorized), torch.zeros(len(memorized), dtype=torch.long)
    artifacts = Artifacts(memorized, memorized, zeros + prompt_tokens, zeros)
    unseen = torch.zeros(len(never_planted), dtype=torch.long)
    ids = torch.arange(count, count + len(retain))
    return MemorizationDataset(
        sequences=torch.cat([memorized, retain]),
        order=ids,
        artifact_ids=torch.arange(count),
        artifacts=artifacts,
        test_artifacts=artifacts.select(torch.arange(0)),
        never_planted=Artifacts(never_planted, never_planted, unseen + prompt_tokens, unseen),
        tests={"random": test},
        tasks={"retain": ids},
        kind="natural",
        prompt_tokens=prompt_tokens,
        continuation=continuation_tokens,
        vocabulary_size=vocabulary_size,
        bos=None,
        eos=None,
        pad=NO_PAD,
        pad_counts=True,
    )


def _each_once(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Return the first row of each distinct prefix of `width` tokens, in order, so that each memory counts once."""
    seen = {row.tobytes(): number for number, row in reversed(list(enumerate(rows[:, :width].numpy())))}
    if len(seen) == len(rows):
        return rows
    logger.warning("%d of %d memorized rows are left out: they repeat earlier rows", len(rows) - len(seen), len(rows))
    return rows[sorted(seen.values())]
