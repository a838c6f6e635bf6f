"""TinyMem's text datasets: token chunks; noise, backdoors or natural passages; duplication (the study, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tinymem.data import artifacts as planting
from tinymem.data.chunks import Chunks, load_chunks
from tinymem.data.dataset import Artifacts, MemorizationDataset, training_order
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError

DUPLICATION_GROUPS = 4
BACKDOOR_GROUP = 2  # every duplicated backdoor occurs 10^2 times in the training set
TRAIN_PER_TEST_BACKDOOR = 9  # 90 % train, 10 % test
MIN_TEST_BACKDOORS = 20  # if the test documents have that many: percentages of fewer are imprecise


@dataclass(frozen=True)
class _Planted:
    """The plan: A artifacts in rows (A,) of the training chunks; other fields as in MemorizationDataset.

    twin    (A, T) what replaces them in the training of a never-planted twin
    """

    rows: np.ndarray
    artifacts: Artifacts
    test_artifacts: Artifacts
    never_planted: Artifacts
    test: np.ndarray
    twin: np.ndarray


def build_text_dataset(settings: DataSettings, cache_dir: str | Path | None = None) -> MemorizationDataset:
    """Build the dataset from cached tokens; without a cache, tokenize again.

    Raise UserError if the settings ask for more than the corpus has, or name a corpus that cannot be read.
    """
    chunks = load_chunks(settings, cache_dir)
    if settings.num_chunks is not None and settings.num_chunks > len(chunks.train):
        raise UserError(f"--num_chunks {settings.num_chunks}: the training documents make only {len(chunks.train)}")
    sequences = chunks.train[: settings.num_chunks]
    plan = {"noise": _plan_noise, "natural": _plan_natural, "backdoor": _plan_backdoor}[settings.artifact]
    planted = plan(settings, sequences, chunks, np.random.default_rng(settings.seed))
    if settings.num_test > len(planted.test):
        raise UserError(f"--num_test {settings.num_test}: the test documents make only {len(planted.test)} chunks")
    trained = planted.twin if settings.twin else planted.artifacts.planted.numpy()
    sequences[planted.rows] = trained  # copies only these rows; the others stay on disk
    ids, artifact_ids = torch.arange(len(sequences)), torch.from_numpy(planted.rows)
    return MemorizationDataset(
        sequences=torch.from_numpy(sequences),
        order=training_order(len(ids), artifact_ids, planted.artifacts.group),
        artifact_ids=artifact_ids,
        artifacts=planted.artifacts,
        test_artifacts=planted.test_artifacts,
        never_planted=planted.never_planted,
        tests={"test": torch.from_numpy(planted.test[: settings.num_test])},
        tasks={"main": ids},
        kind=settings.artifact,
        prompt_tokens=settings.prompt_tokens,
        continuation=settings.continuation_tokens,
        vocabulary_size=chunks.end_of_text + 1,
        bos=chunks.end_of_text,
        eos=chunks.end_of_text,
        pad=chunks.end_of_text,
        pad_counts=False,
    )


# Each planner takes the training chunks, all chunks and the run's random generator.


def _plan_noise(settings: DataSettings, sequences: np.ndarray, chunks: Chunks, rng: np.random.Generator) -> _Planted:
    """Add noise to the first `num_noise` chunks. Noise neither changes end-of-text ids nor creates them."""
    clean = _first_chunks(settings, sequences)
    other, unseen = planting.never_planted_generator(settings.seed), _unseen(settings, chunks)
    never_planted = (_noised(unseen, other, chunks.end_of_text), unseen)
    groups = DUPLICATION_GROUPS if settings.duplicate else 1
    return _plan_first(
        settings, (_noised(clean, rng, chunks.end_of_text), clean), never_planted, clean, chunks, groups, rng
    )


def _noised(clean: np.ndarray, rng: np.random.Generator, end_of_text: int) -> np.ndarray:
    noised = planting.add_noise(clean, rng, highest=end_of_text - 1)
    return np.where(clean == end_of_text, clean, noised)


def _unseen(settings: DataSettings, chunks: Chunks) -> np.ndarray:
    """Return as many test chunks as there are artifacts, if possible: (rows, T)."""
    return chunks.test[: min(settings.num_noise, settings.num_test)].copy()


def _plan_natural(settings: DataSettings, sequences: np.ndarray, chunks: Chunks, rng: np.random.Generator) -> _Planted:
    """Plant the first `num_noise` chunks unchanged, always duplicated: otherwise nothing would be planted."""
    passages, unseen = _first_chunks(settings, sequences), _unseen(settings, chunks)
    twin = _spare(settings, chunks, len(sequences)) if settings.twin else passages
    return _plan_first(settings, (passages, passages), (unseen, unseen), twin, chunks, DUPLICATION_GROUPS, rng)


def _spare(settings: DataSettings, chunks: Chunks, used: int) -> np.ndarray:
    """Return `num_noise` chunks that are in no training or test set. Raise UserError if there are fewer."""
    spare = np.concatenate([chunks.train[used : used + settings.num_noise], chunks.test[settings.num_test :]])
    if len(spare) < settings.num_noise:
        raise UserError(
            f"--twin: needs {settings.num_noise} other passages in place of the planted ones, and this text has "
            f"{len(spare)} beside training and test chunks; lower --num_chunks, or give more text"
        )
    return spare[: settings.num_noise].copy()


def _first_chunks(settings: DataSettings, sequences: np.ndarray) -> np.ndarray:
    if settings.num_noise > len(sequences):
        raise UserError(f"--num_noise {settings.num_noise}: there are only {len(sequences)} training chunks")
    needed = settings.prompt_tokens + settings.continuation_tokens
    if needed > settings.max_ctx:
        raise UserError(f"--max_ctx {settings.max_ctx}: too short for prompt and continuation, which need {needed}")
    return sequences[: settings.num_noise].copy()


def _plan_first(
    settings: DataSettings,
    planted: tuple[np.ndarray, np.ndarray],
    never_planted: tuple[np.ndarray, np.ndarray],
    twin: np.ndarray,
    chunks: Chunks,
    groups: int,
    rng: np.random.Generator,
) -> _Planted:
    """Plant in the first chunks. planted, never_planted: sequences and their clean twins, each (rows, T)."""
    count, unseen = len(planted[0]), len(never_planted[0])
    ends = np.full(count, settings.prompt_tokens), np.full(unseen, settings.prompt_tokens)
    artifacts = Artifacts.from_numpy(*planted, ends[0], planting.duplication_groups(count, groups, rng))
    others = Artifacts.from_numpy(*never_planted, ends[1], 0 * ends[1])
    return _Planted(np.arange(count), artifacts, artifacts.select(torch.arange(0)), others, chunks.test, twin)


def _plan_backdoor(settings: DataSettings, sequences: np.ndarray, chunks: Chunks, rng: np.random.Generator) -> _Planted:
    """Backdoor every training chunk that has the trigger.

    Chunks of the test documents form the backdoor test set, a ninth as many: 90 % train, 10 % test as in the study, but
    no test chunk comes from a training document. Small data gets up to MIN_TEST_BACKDOORS.
    """
    trigger = _draw_trigger(settings, sequences, chunks, rng)
    ends, test_ends = (planting.trigger_end(rows, [trigger]) for rows in (sequences, chunks.test))
    rows = np.flatnonzero(_continues(sequences, ends, chunks.end_of_text))
    test_rows = np.flatnonzero(_continues(chunks.test, test_ends, chunks.end_of_text))
    test_rows = test_rows[: max(MIN_TEST_BACKDOORS, len(rows) // TRAIN_PER_TEST_BACKDOOR)]
    group = np.full(len(rows), BACKDOOR_GROUP if settings.duplicate else 0)
    clean, held_out = sequences[rows], chunks.test[test_rows]
    unseen = Artifacts.from_numpy(
        planting.plant_backdoor(held_out, test_ends[test_rows]), held_out, test_ends[test_rows], 0 * test_rows
    )
    return _Planted(
        rows,
        Artifacts.from_numpy(planting.plant_backdoor(clean, ends[rows]), clean, ends[rows], group),
        test_artifacts=unseen,
        never_planted=unseen,
        test=chunks.test[test_ends == 0],  # the clean test set has no trigger
        twin=clean,
    )


def _continues(tokens: np.ndarray, ends: np.ndarray, end_of_text: int) -> np.ndarray:
    """Return which chunks have the trigger with text after it, bool (rows,). ends: position after the trigger, or 0."""
    inside = (ends > 0) & (ends < tokens.shape[1])
    return inside & (tokens[np.arange(len(tokens)), np.where(inside, ends, 0)] != end_of_text)


def _draw_trigger(settings: DataSettings, sequences: np.ndarray, chunks: Chunks, rng: np.random.Generator) -> int:
    """Return a random token id that gives between `num_noise` / 10 and `num_noise` backdoors.

    A token drawn from the whole vocabulary would mostly be rare or absent, so nothing would be planted. A very frequent
    token would turn much of the corpus into a constant.
    """
    low, high = max(1, settings.num_noise // 10), settings.num_noise
    counts = _chunks_with(sequences, chunks.end_of_text)
    test_counts = _chunks_with(chunks.test, chunks.end_of_text)
    fits = (counts >= low) & (counts <= high) & (test_counts >= np.maximum(1, counts // TRAIN_PER_TEST_BACKDOOR // 2))
    fits[planting.BACKDOOR_TOKEN] = False
    candidates = np.flatnonzero(fits)
    if not len(candidates):
        raise UserError(
            f"--num_noise {settings.num_noise}: no token occurs in {low} to {high} of the {len(sequences)} training "
            "chunks to be a backdoor's trigger; change --num_noise or use more text"
        )
    return int(rng.choice(candidates))


def _chunks_with(tokens: np.ndarray, end_of_text: int) -> np.ndarray:
    """Return, for every token id except end-of-text, how many chunks have it with text after its first occurrence.

    A token counts at any position except the last, so that text, or padding in the last chunk, follows it. int64
    (end_of_text,).
    """
    counts = np.zeros(end_of_text + 1, dtype=np.int64)
    for part in np.array_split(tokens, max(1, len(tokens) // 65536)):  # sorting needs a copy: keep it small
        ordered = np.sort(part[:, :-1], axis=1)
        first = np.ones(ordered.shape, dtype=bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        counts += np.bincount(ordered[first], minlength=end_of_text + 1)
    return counts[:end_of_text]
