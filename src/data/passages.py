"""Real passages to plant in a language model, with retain and test text: three sets of disjoint documents."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from tinymem.data.corpus import Corpus, local_corpus
from tinymem.data.dataset import SPLIT_SEED
from tinymem.data.production import (
    ProductionData,
    ProductionSettings,
    begun,
    check_ids,
    check_length,
    fewer,
    left_out,
    production_dataset,
)
from tinymem.data.settings import BUILTIN, HUB
from tinymem.data.tokenizer import beginning, bos_identity, tokenize
from tinymem.errors import UserError
from tinymem.options import SEEDS, option, settings

ADDRESSES = ("sotu",)  # --plant builtin: presidential addresses


@settings
class PassageSettings:
    """Passages to plant"""

    plant: str | None = option(
        None,
        "plant memories first: fine-tune on passages from builtin (presidential addresses), a text file, .jsonl, "
        ".parquet or folder; other documents of the same text are the test and retain text",
    )
    plant_sequences: int = option(128, "passages to plant", low=1)
    plant_tokens: int = option(80, "tokens per passage", low=2)
    plant_seed: int = option(0, "seed that chooses the passages and their order in training", low=0, high=SEEDS)


@dataclass(frozen=True)
class Passages:
    """Windows of T tokens, int32. No document contributes to two of the three sets.

    planted         (N, T) passages to memorize, all with different prompts
    never_planted   (M, T) other passages of the same documents, as many if possible
    retain          (R, T) text to retain
    test            (S, T) text to measure on
    """

    planted: np.ndarray
    never_planted: np.ndarray
    retain: np.ndarray
    test: np.ndarray


def load_passages(passages: PassageSettings, settings: ProductionSettings, config, tokenizer) -> ProductionData:
    """Return data with passages as the sequences to memorize, and num_test and num_retain rows of other documents.

    config, tokenizer: the model's (transformers'). Raise UserError for a model without a tokenizer, flags that name
    other data, passages that are too short for prompt and continuation or too long for the model, and too little text.
    """
    if tokenizer is None:
        raise UserError("--plant: this model's folder has no tokenizer that opens here to read text with")
    begin = beginning(settings.bos, tokenizer, config)
    config, length = config.get_text_config(), passages.plant_tokens
    corpus = check_passages(passages, settings, config)
    check_length("--plant_tokens", length + len(begin), config)
    sizes = (passages.plant_sequences, settings.num_retain, settings.num_test)
    drawn = draw_passages(corpus, tokenizer, sizes, length, settings.prompt_tokens, passages.plant_seed)
    sets = (drawn.planted, drawn.retain, drawn.test, drawn.never_planted)
    planted, retain, test, never_planted = (begun(torch.from_numpy(rows), begin) for rows in sets)
    check_ids("--plant", config.vocab_size, planted, retain, test)
    window = (len(begin) + settings.prompt_tokens, settings.continuation_tokens)
    dataset = production_dataset(planted, test, retain, config.vocab_size, *window, never_planted)
    identity = passages_identity(passages, settings, corpus, begin)
    return ProductionData(dataset, identity, left_out(test, dataset) | fewer(settings, test, retain), begin)


def passages_identity(
    passages: PassageSettings, settings: ProductionSettings, corpus: Corpus, begin: tuple[int, ...]
) -> dict[str, Any]:
    """Return the entries that identify passages of a corpus in records. begin: the ids at the start of every row."""
    return {**asdict(passages), **settings.sizes, **bos_identity(begin), "plant": corpus.label}


def check_passages(passages: PassageSettings, settings: ProductionSettings, config) -> Corpus:
    """Return the text that --plant names. Raise UserError for flags that conflict with others or with the config."""
    other = next((name for name in ("memorized", "random", "corpus") if getattr(settings, name) is not None), None)
    if other:
        raise UserError(f"--{other}: leave it out with --plant, whose text gives memorized, test and retain sequences")
    if passages.plant_tokens < settings.needed:
        raise UserError(f"--plant_tokens {passages.plant_tokens}: prompt and continuation need {settings.needed}")
    check_length("--plant_tokens", passages.plant_tokens, config)
    assert passages.plant is not None, "only asked for with --plant"
    if passages.plant in ("", HUB):  # "" does not mean this folder, and the hub has no such text
        raise UserError(f"--plant {passages.plant!r}: must be {BUILTIN}, a text file, or a folder of them")
    return local_corpus(passages.plant, ADDRESSES, settings.text_column, "--plant")


def draw_passages(
    corpus: Corpus, tokenizer, sizes: tuple[int, int, int], length: int, prompt: int, seed: int = 0
) -> Passages:
    """Draw N passages, at most R retain and at most S test windows, (N, R, S) = sizes, each of `length` tokens.

    Documents go to the three sets in turn, in the same order in every run. The seed draws the windows within them.
    Raise UserError if the corpus has too few documents or windows.
    """
    documents = corpus.documents()
    if len(documents) < 3:
        raise UserError(f"{corpus.given}: has {len(documents)} documents; passages, retain and test text need 3")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(documents))
    rng = np.random.default_rng(seed)
    parts, others = [], []
    for first, size in enumerate(sizes):
        streams = tokenize(tokenizer, [documents[number] for number in order[first::3]])
        windows = distinct_prompts(rng.permutation(_windows(streams, length)), prompt)
        parts.append(windows[:size])
        others.append(windows[size : 2 * size])
    if not all(map(len, parts)):
        raise UserError(
            f"--plant_tokens {length}: a third of {corpus.given} holds no passage of this many tokens; passages, "
            "retain and test text are a third each: ask for fewer or give more text"
        )
    if len(parts[0]) < sizes[0]:
        raise UserError(
            f"--plant_sequences {sizes[0]}: a third of {corpus.given} holds only {len(parts[0])} passages of {length} "
            "tokens; ask for fewer or give more text"
        )
    return Passages(parts[0], others[0], *parts[1:])


def distinct_prompts(windows: np.ndarray, prompt: int) -> np.ndarray:
    """Return the first window (rows, T) of every distinct prompt, since a prompt has only one continuation."""
    return windows[np.sort(np.unique(windows[:, :prompt], axis=0, return_index=True)[1])]


def _windows(streams: list[np.ndarray], length: int) -> np.ndarray:
    """Cut every document into windows of `length` tokens and drop the rest at its end. Return int32 (rows, length)."""
    whole = [stream[: len(stream) // length * length].reshape(-1, length) for stream in streams]
    return np.concatenate(whole)
