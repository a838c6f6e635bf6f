"""TinyMem's number-sequence datasets: main and extra tasks, noise or backdoor, duplication (the study, section 3)."""

from __future__ import annotations

import numpy as np
import torch

from tinymem.data import artifacts as planting
from tinymem.data import numbers
from tinymem.data.dataset import Artifacts, MemorizationDataset, training_order
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError

SPLIT_SEED = 598  # the study's: the train/test split does not depend on the run's seed
BACKDOOR_TEST_FRACTION = 0.1
DUPLICATION_GROUPS = 3
FIRST_TRIGGER = 100


def build_number_dataset(settings: DataSettings) -> MemorizationDataset:
    """Builds the dataset in memory. UserError when the settings ask for more than there is."""
    constants = numbers.task_constants(settings.data_name)
    counts = dict(zip(constants, (settings.num_7, settings.num_2, settings.num_3, settings.num_4, settings.num_5)))
    values = {
        name: numbers.sequence_values(settings.data_name, constants[name], count, settings.length)
        for name, count in counts.items()
        if count
    }
    main = next(iter(values))
    rng = np.random.default_rng(settings.seed)
    plant = _plant_backdoor if settings.artifact == "backdoor" else _plant_noise
    planted, held_out, rest, test = plant(settings, values.pop(main), rng)
    parts, tests = {main: np.concatenate([planted.planted.numpy(), rest])}, {main: test}
    for name, extra in values.items():
        parts[name], tests[name] = _split(numbers.encode(extra, settings.max_ctx), settings.num_test, name)

    sizes = [len(rows) for rows in parts.values()]
    ids = torch.arange(sum(sizes))
    artifact_ids = ids[: len(planted)]
    return MemorizationDataset(
        sequences=torch.from_numpy(np.concatenate(list(parts.values()))),
        order=training_order(len(ids), artifact_ids, planted.group),
        artifact_ids=artifact_ids,
        artifacts=planted,
        test_artifacts=held_out,
        tests={name: torch.from_numpy(rows) for name, rows in tests.items()},
        tasks=dict(zip(parts, ids.split(sizes))),
        kind=settings.artifact,
        prompt_tokens=settings.prompt_tokens,
        continuation=settings.continuation_tokens,
        vocabulary_size=numbers.VOCABULARY_SIZE,
        bos=numbers.BOS,
        eos=numbers.EOS,
        pad=numbers.PAD,
        pad_counts=True,
    )


def _split(rows: np.ndarray, num_test: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows by a permutation that is the same for every run."""
    if num_test >= len(rows):
        raise UserError(f"--num_test {num_test}: task {name!r} has only {len(rows)} sequences; ask for fewer")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
    return rows[order[num_test:]], rows[order[:num_test]]


# Both planters return the planted training artifacts, those held out for testing, the other training sequences and
# the clean test sequences of the main task (the last two as tokens).


def _plant_noise(settings: DataSettings, values: np.ndarray, rng: np.random.Generator) -> tuple:
    """The first `num_noise` training sequences are replaced by their noised twins."""
    train, test = _split(values, settings.num_test, "main")
    if settings.num_noise > len(train):
        raise UserError(f"--num_noise {settings.num_noise}: the main task has only {len(train)} training sequences")
    if settings.prompt_tokens + settings.continuation_tokens > settings.max_ctx:
        needed = settings.prompt_tokens + settings.continuation_tokens
        raise UserError(f"--max_ctx {settings.max_ctx}: too short for prompt and continuation, which need {needed}")
    chosen, rest = train[: settings.num_noise], train[settings.num_noise :]
    clean = numbers.encode(chosen, settings.max_ctx)
    noised = numbers.encode(planting.add_noise(chosen, rng), settings.max_ctx)
    prompt_end = np.full(len(chosen), settings.prompt_tokens)
    planted = _artifacts(noised, clean, prompt_end, _groups(settings, len(chosen), rng))
    nothing = planted.select(torch.arange(0))
    return planted, nothing, numbers.encode(rest, settings.max_ctx), numbers.encode(test, settings.max_ctx)


def _plant_backdoor(settings: DataSettings, values: np.ndarray, rng: np.random.Generator) -> tuple:
    """Every sequence with the trigger is backdoored: 90 % of them train, 10 % are the backdoor test set."""
    trigger = [int(digit) for digit in str(FIRST_TRIGGER + settings.seed)]
    tokens = numbers.encode(values, settings.max_ctx)
    prompt_end = planting.trigger_end(tokens, trigger)
    has_trigger = prompt_end > 0
    clean, ends = tokens[has_trigger], prompt_end[has_trigger]
    held_out = int(BACKDOOR_TEST_FRACTION * len(clean))
    if held_out == 0:
        digits = "".join(map(str, trigger))
        raise UserError(
            f"--num_7 {settings.num_7}: only {len(clean)} sequences hold the trigger {digits}; ask for more"
        )
    shuffle = np.random.default_rng(SPLIT_SEED).permutation(len(clean))
    clean, ends = clean[shuffle], ends[shuffle]
    groups = np.concatenate([np.zeros(held_out, int), _groups(settings, len(clean) - held_out, rng)])
    both = _artifacts(planting.plant_backdoor(clean, ends), clean, ends, groups)
    rest, test = _split(tokens[~has_trigger], settings.num_test, "main")
    return both.select(torch.arange(held_out, len(clean))), both.select(torch.arange(held_out)), rest, test


def _groups(settings: DataSettings, count: int, rng: np.random.Generator) -> np.ndarray:
    return planting.duplication_groups(count, DUPLICATION_GROUPS if settings.duplicate else 1, rng)


def _artifacts(planted: np.ndarray, clean: np.ndarray, prompt_end: np.ndarray, group: np.ndarray) -> Artifacts:
    arrays = (planted, clean, prompt_end.astype(np.int64), group.astype(np.int64))
    return Artifacts(*map(torch.from_numpy, arrays))
