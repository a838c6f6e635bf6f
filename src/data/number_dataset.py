"""TinyMem's number-sequence datasets: main and extra tasks, noise or backdoor, duplication (the study, section 3)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from tinymem.data import artifacts as planting
from tinymem.data import numbers
from tinymem.data.dataset import SPLIT_SEED, Artifacts, MemorizationDataset, training_order
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError

BACKDOOR_TEST_FRACTION = 0.1
DUPLICATION_GROUPS = 3
FIRST_TRIGGER = 100


def build_number_dataset(settings: DataSettings) -> MemorizationDataset:
    """Build the dataset in memory. Raise UserError if the settings ask for more data than there is.

    num_7 and the other counts are numbers of starts. A sequence that several starts lead to is kept once, so that no
    sequence is in both training and test. increment keeps all starts; mult keeps all except with even constants; of
    20000 starts, exp with 7 keeps 10066 and exponential with 7 keeps 2878. A few sequences (rows of zeros or ones)
    belong to several tasks. Where they would be in both training and test, they are removed from the extra tasks'
    training sets and from the test sets.
    """
    values = _distinct_values(settings)
    main = next(iter(values))
    rng = np.random.default_rng(settings.seed)
    plant = _plant_backdoor if settings.artifact == "backdoor" else _plant_noise
    planted, held_out, never_planted, rest, test = plant(settings, values.pop(main), rng)
    trained = planted.clean if settings.twin else planted.planted
    parts, tests = {main: np.concatenate([trained.numpy(), rest])}, {main: test}
    kept_out = np.concatenate([test, planted.clean.numpy(), held_out.clean.numpy()])
    for name, extra in values.items():
        train, tests[name] = _split(numbers.encode(extra, settings.max_ctx), settings, name)
        parts[name] = train[_absent(train, kept_out)]
    training = np.concatenate(list(parts.values()))
    unseen = np.split(
        _absent(np.concatenate(list(tests.values())), training), np.cumsum(list(map(len, tests.values())))
    )
    tests = {name: rows[keep] for (name, rows), keep in zip(tests.items(), unseen)}
    for name, rows in tests.items():
        if not len(rows):
            raise UserError(f"--num_test {settings.num_test}: all test sequences of task {name!r} are trained on as "
                            "well; ask for more")  # fmt: skip

    sizes = [len(rows) for rows in parts.values()]
    ids = torch.arange(sum(sizes))
    artifact_ids = ids[: len(planted)]
    return MemorizationDataset(
        sequences=torch.from_numpy(training),
        order=training_order(len(ids), artifact_ids, planted.group),
        artifact_ids=artifact_ids,
        artifacts=planted,
        test_artifacts=held_out,
        never_planted=never_planted,
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


def _distinct_values(settings: DataSettings) -> dict[str, np.ndarray]:
    """Return the sequences of each task that has any, main task first. Raise UserError for too many starts."""
    task, values = settings.data_name, {}
    constants = numbers.task_constants(task)
    starts = numbers.number_of_starts(task)
    for name, constant in constants.items():
        flag = _flag(task, name)
        count = getattr(settings, flag)
        if starts is not None and count > starts:
            distinct = len(numbers.distinct_sequences(task, constant, starts, 1))
            raise UserError(
                f"--{flag} {count}: {task} with constant {constant} has only {starts} starts ({distinct} distinct "
                f"sequences); ask for at most {starts}"
            )
        if count:
            values[name] = numbers.distinct_sequences(task, constant, count, settings.length)
    return values


def _flag(task: str, name: str) -> str:
    """Return the setting that holds the number of sequences of a task."""
    constants = numbers.task_constants(task)
    main, constant = next(iter(constants.values())), constants[name]
    swapped = {main: 7, 7: main}  # num_7 always belongs to the main task, so the two swap
    return f"num_{swapped.get(constant, constant)}"


def _main(settings: DataSettings) -> str:
    return next(iter(numbers.task_constants(settings.data_name)))


def _absent(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which rows do not occur in `others`, bool (rows,). Both are uint8 (..., T)."""
    hashes, other_hashes = _hashes(rows), _hashes(others)
    keep = np.isin(hashes, other_hashes, invert=True)
    doubtful = ~keep  # equal rows have equal hashes, but so may a few different rows
    if doubtful.any():
        seen = set(map(bytes, others[np.isin(other_hashes, hashes[doubtful])]))
        keep[doubtful] = [bytes(row) not in seen for row in rows[doubtful]]
    return keep


def _hashes(rows: np.ndarray) -> np.ndarray:
    """Return a random linear function of the bytes of each row, uint64 (rows,)."""
    width = rows.shape[1]
    words = np.pad(rows, ((0, 0), (0, -width % 8))).view(np.uint64)
    factors = np.random.default_rng(width).integers(1 << 64, size=words.shape[1], dtype=np.uint64) | np.uint64(1)
    return (words * factors).sum(1)


def _split(rows: np.ndarray, settings: DataSettings, name: str, which: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Return training and test rows, split by the same permutation in every run. which: names the rows in messages."""
    num_test, flag = settings.num_test, _flag(settings.data_name, name)
    if num_test >= len(rows):
        raise UserError(
            f"--num_test {num_test}: task {name!r} (--{flag} {getattr(settings, flag)}) has only {len(rows)} distinct "
            f"sequences{which}; ask for fewer than that, or for more of --{flag}"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
    return rows[order[num_test:]], rows[order[:num_test]]


class _Planted(NamedTuple):
    """The main task's sequences after planting. T = context length.

    artifacts, held_out   artifacts in the training set, and those held out for testing
    never_planted         artifacts in no training set: noised test sequences, or the held-out backdoors
    rest, test            uint8 (rows, T): the other training sequences, and clean test sequences
    """

    artifacts: Artifacts
    held_out: Artifacts
    never_planted: Artifacts
    rest: np.ndarray
    test: np.ndarray


def _plant_noise(settings: DataSettings, values: np.ndarray, rng: np.random.Generator) -> _Planted:
    """Replace the first `num_noise` training sequences with noised ones."""
    train, test = _split(values, settings, _main(settings))
    if settings.num_noise > len(train):
        raise UserError(f"--num_noise {settings.num_noise}: the main task has only {len(train)} training sequences")
    if settings.prompt_tokens + settings.continuation_tokens > settings.max_ctx:
        needed = settings.prompt_tokens + settings.continuation_tokens
        raise UserError(f"--max_ctx {settings.max_ctx}: too short for prompt and continuation, which need {needed}")
    chosen, rest = train[: settings.num_noise], train[settings.num_noise :]
    planted = _noised(settings, chosen, rng, lambda: _groups(settings, len(chosen), rng))
    other = planting.never_planted_generator(settings.seed)
    never_planted = _noised(settings, test[: settings.num_noise], other)
    nothing = planted.select(torch.arange(0))
    encoded = (numbers.encode(rows, settings.max_ctx) for rows in (rest, test))
    return _Planted(planted, nothing, never_planted, *encoded)


def _noised(settings: DataSettings, values: np.ndarray, rng: np.random.Generator, groups=None) -> Artifacts:
    """Return the sequences (rows, length) with noise. `rng` draws the noise, then the groups."""
    clean = numbers.encode(values, settings.max_ctx)
    noised = numbers.encode(planting.add_noise(values, rng), settings.max_ctx)
    prompt_end = np.full(len(values), settings.prompt_tokens)
    return Artifacts.from_numpy(noised, clean, prompt_end, groups() if groups else 0 * prompt_end)


def _plant_backdoor(settings: DataSettings, values: np.ndarray, rng: np.random.Generator) -> _Planted:
    """Backdoor every sequence that has the trigger: 90 % are for training, 10 % are the backdoor test set."""
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
    both = Artifacts.from_numpy(planting.plant_backdoor(clean, ends), clean, ends, groups)
    rest, test = _split(tokens[~has_trigger], settings, _main(settings), " without the trigger")
    unseen = both.select(torch.arange(held_out))
    return _Planted(both.select(torch.arange(held_out, len(clean))), unseen, unseen, rest, test)


def _groups(settings: DataSettings, count: int, rng: np.random.Generator) -> np.ndarray:
    return planting.duplication_groups(count, DUPLICATION_GROUPS if settings.duplicate else 1, rng)
