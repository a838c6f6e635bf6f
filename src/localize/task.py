"""The input of an unlearning method: sequences to forget, sequences to retain, and how much memory it may use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar, cast

import torch

from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.data.memories import memories
from tinymem.data.text_reader import TextReader
from tinymem.errors import UserError, finite
from tinymem.localize.cache import Cache, Tensors
from tinymem.localize.watch import Watch
from tinymem.metrics.memorization import memorized
from tinymem.metrics.probe import OnRows, silent
from tinymem.models.adapter import find_mlps
from tinymem.models.losses import loss_mask, token_losses
from tinymem.options import SEEDS, option, settings
from tinymem.training.processes import ALONE, Processes

# Task settings that change how much memory a method needs but not its result: not part of a run's identity.
MEMORY_SETTINGS = ("microbatch", "gradient_checkpointing")
PRODUCTION_HELD_OUT = 0.5  # default holdout_fraction for production models
TRAIN, TEST = "train", "test"  # values of --forget
OTHERS, ALL = "others", "all"  # values of --retain
ADDED_LATER = ("validation_fraction", "forget", "retain")
Kept = TypeVar("Kept", bound=Tensors)
Look = Callable[[Artifacts], "torch.Tensor"]  # which artifacts are memorized, bool (A,)
logger = logging.getLogger(__name__)
UNLEARN_SETS = ("mem", "noise", "seven", "two", "three", "four", "five")


@settings
class TaskSettings:
    """Unlearning task"""

    unlearn_set_name: str = option(
        "mem",
        "what to forget: memorized artifacts, all artifacts (noise), or a task's training set",
        choices=UNLEARN_SETS,
    )
    forget: str = option(
        TRAIN,
        "where to find what to forget: the training set, or the test triggers of a backdoor, as in the study's code",
        choices=(TRAIN, TEST),
    )
    retain: str = option(
        OTHERS,
        "training rows to retain: the others, or all of them, even planted rows that are to be forgotten, as in the "
        "study's code",
        choices=(OTHERS, ALL),
    )
    holdout_fraction: float = option(
        0.0, "share of the forget set that is never shown to the method; measured separately", low=0.0, below=1.0
    )
    validation_fraction: float = option(
        0.0, "share of the forget set for choosing settings; never shown to the method, never reported as a result",
        low=0.0, below=1.0,
    )  # fmt: skip
    max_retain: int = option(100000, "at most this many retain sequences", low=1)
    unlearn_seed: int = option(0, "seed of the method and of the held-out split", low=0, high=SEEDS)
    microbatch: int | None = option(
        None,
        "sequences per forward pass: bounds memory, does not change results; default: from the model's size, "
        "at most 64",
        low=1,
    )
    gradient_checkpointing: bool = option(
        False, "keep only the blocks' inputs for the backward pass: half the speed, far less memory, same results"
    )

    def __post_init__(self) -> None:
        if self.holdout_fraction + self.validation_fraction >= 1:
            raise UserError(
                f"--holdout_fraction {self.holdout_fraction} and --validation_fraction {self.validation_fraction}: "
                "leave nothing to show to the method; their sum must be below 1"
            )

    def recorded(self) -> dict[str, Any]:
        """Return the settings that change results, as stored in records.

        ADDED_LATER settings are left out at their defaults, so that runs from before they existed count as the same.
        """
        usual = {field.name: field.default for field in fields(self) if field.name in ADDED_LATER}
        return {
            name: value
            for name, value in vars(self).items()
            if name not in MEMORY_SETTINGS and not (name in usual and value == usual[name])
        }


@dataclass(frozen=True)
class UnlearningTask:
    """Sequences to forget and to retain: F, R, H and V sequences of T tokens.

    forget     (F, T) sequences to forget, with prompt and clean twin
    retain     (R, T) sequences to retain
    held_out   (H, T) memorized sequences that methods and attacks never see
    validation (V, T) more sequences that they never see, for choosing settings; None: no such set
    continuation   k: the measured tokens are prompt_end .. prompt_end + k - 1
    ignored_token  token id excluded from all losses, or None
    pad            token id that fills short sequences, if any: objectives never unlearn it
    seed           seed of all random numbers in a method
    microbatch     sequences per forward pass
    gradient_checkpointing   run blocks again in the backward pass instead of keeping their activations
    shown      the part of `forget` that differs from its clean twin, on which forgetting is measured; None: all
    clean      bool (R,): the rows of `retain` that teach nothing that is to be forgotten; None: all
    memories   int64 (F,): the memory that each row of `forget` belongs to; None: each is its own
    original   for attacks: state-dict key -> the weight before the edit; None: the model is unedited
    cache      stores what a method computes once for all strengths; None: nothing is stored
    reader     reads other text than the task's as rows like those of `retain`
    watch      is told what a method does, step by step
    processes  the processes that train together on an objective
    """

    forget: Artifacts
    retain: torch.Tensor
    held_out: Artifacts
    continuation: int
    ignored_token: int | None = None
    pad: int | None = None
    seed: int = 0
    microbatch: int = 64
    gradient_checkpointing: bool = False
    shown: Artifacts | None = None
    clean: torch.Tensor | None = None
    validation: Artifacts | None = None
    memories: torch.Tensor | None = None
    original: Callable[[str], torch.Tensor] | None = None
    cache: Cache | None = None
    reader: TextReader = field(default_factory=TextReader)
    watch: Watch = field(default_factory=Watch)
    processes: Processes = ALONE

    def generator(self) -> torch.Generator:
        """Return a fresh generator on the CPU, so that every device draws the same numbers."""
        return torch.Generator().manual_seed(self.seed)

    def cached(self, name: str, settings: Mapping[str, Any], model, compute: Callable[[], Kept]) -> Kept:
        """Return the tensors of this name and these settings, computed if there is no cache or they are not in it."""
        if self.cache is None:
            return compute()
        return cast(Kept, self.cache.tensors(name, settings, model, compute))

    def passes(self, rows: int) -> int:
        """Return the forward passes over this many sequences: the number of microbatches."""
        return -(-rows // self.microbatch)

    def check_retain(self, name: str) -> None:
        """Raise UserError for a task without a retain set. name: the flag and the name of what needs it."""
        if not len(self.retain):
            raise UserError(f"{name}: needs a retain set; give it retain text, or leave {name.split()[-1]} out")

    def clean_retain(self, name: str) -> torch.Tensor:
        """Return the sequences to retain that teach nothing that is to be forgotten, (rows, T).

        Raise UserError without any. name: as in `check_retain`.
        """
        self.check_retain(name)
        rows = self.retain if self.clean is None else self.retain[self.clean]
        if not len(rows):
            raise UserError(
                f"{name}: all {len(self.retain)} sequences to retain teach what is to be forgotten; use --retain "
                f"{OTHERS}, or leave {name.split()[-1]} out"
            )
        return rows

    def mean_loss(self, model, tokens: torch.Tensor) -> float:
        """Return the mean token loss in nats over any number of sequences."""
        total = count = 0.0
        for part in tokens.split(self.microbatch):
            with torch.no_grad():
                losses = token_losses(model, part)
            mask = loss_mask(part, self.ignored_token).to(losses.device)
            total += (losses * mask).sum().item()
            count += mask.sum().item()
        return total / max(count, 1)


class Withheld:
    """Stand-in for sequences that a method or an attack must never see: any use raises a one-line error."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError(
            "the method or attack asks for held-out or validation sequences, which judge it; it may use task.forget"
        )

    def __len__(self) -> int:
        return self.planted  # raises: Python asks the class, not __getattr__, for __len__


def without_judging_sets(task: UnlearningTask, **changes: Any) -> UnlearningTask:
    """Return a task as methods and attacks get it: without the sequences that judge them."""
    return replace(task, held_out=cast(Artifacts, Withheld()), validation=cast(Artifacts, Withheld()), **changes)


def unlearning_task(
    model, dataset: MemorizationDataset, settings: TaskSettings, on_rows: OnRows = silent
) -> UnlearningTask:
    """Measure what the model has memorized, and divide the training data into forget, held-out and retain sets.

    The forget set is empty if nothing is memorized. on_rows: as in `tinymem.metrics.evaluate.measure`. Raise UserError
    for a set that the dataset does not have, or a held-out part that leaves nothing to unlearn.
    """
    length, checkpointing = dataset.sequences.shape[1], settings.gradient_checkpointing
    microbatch = settings.microbatch or default_microbatch(model, length, checkpointing)
    with finite("measuring what is memorized"):
        look = partial(_memorized, model, dataset, microbatch=microbatch, on_rows=on_rows)
        artifacts, ids = _candidates(dataset, settings.unlearn_set_name, look)
        if settings.forget == TEST:  # ids stay those memorized in the training set: they are not retained either
            artifacts = _memorized_triggers(dataset, settings.unlearn_set_name, look)
    teaching = torch.zeros(len(dataset.sequences), dtype=torch.bool)
    teaching[ids] = True
    if dataset.kind == "backdoor":  # all of its sequences teach the same, even those not memorized
        teaching[dataset.artifact_ids] = True
    groups = memories(dataset, artifacts)
    to_forget, to_hold_out, to_validate = split_groups(groups, settings)
    forget, held_out, validation = map(artifacts.select, (to_forget, to_hold_out, to_validate))
    keep = torch.zeros(len(dataset.sequences), dtype=torch.bool)
    keep[dataset.order] = True
    if settings.retain == OTHERS:
        keep[ids] = False
    elif len(ids) and not keep[ids].any():
        raise UserError(f"--retain {ALL}: of this model's training rows only others are known; use --retain {OTHERS}")
    retain = keep.nonzero().flatten()
    if not len(retain):
        raise UserError(f"--unlearn_set_name {settings.unlearn_set_name}: leaves no retain set")
    if len(retain) > settings.max_retain:
        chosen = torch.randperm(len(retain), generator=torch.Generator().manual_seed(settings.unlearn_seed))
        retain = retain[chosen[: settings.max_retain].sort().values]
    clean = ~teaching[retain]
    return UnlearningTask(
        forget=forget,
        memories=groups[to_forget],
        shown=_countable(dataset, forget, settings.unlearn_set_name),
        retain=dataset.sequences[retain],
        clean=None if clean.all() else clean,
        held_out=_countable(dataset, held_out, settings.unlearn_set_name),
        validation=_countable(dataset, validation, settings.unlearn_set_name) if settings.validation_fraction else None,
        continuation=dataset.continuation,
        ignored_token=dataset.ignored_token,
        pad=dataset.pad,
        seed=settings.unlearn_seed,
        microbatch=microbatch,
        gradient_checkpointing=checkpointing,
    )


def split_groups(groups: torch.Tensor, settings: TaskSettings) -> list[torch.Tensor]:
    """Return the rows to forget, to hold out and to validate on, sorted: whole groups, about as many as asked for.

    groups: the memory of each row, (rows,). The held-out rows do not depend on the validation set. Raise UserError if
    nothing would be left to forget, or if no whole group fits the rows to hold out or to validate on. Log a warning if
    a share is less than a row.
    """
    queue, unseen_rows = _shuffled_groups(groups, settings.unlearn_seed), []
    memory_count = len(queue)
    for flag in ("holdout_fraction", "validation_fraction"):
        share = getattr(settings, flag)
        taken_groups, queue = _take_groups(queue, round(share * len(groups)))
        rows = torch.isin(groups, torch.tensor(taken_groups, dtype=torch.long))
        note = "" if memory_count == len(groups) else (
            f" (in {memory_count} memories: sequences that share text are shown or held out together)"
        )  # fmt: skip
        if len(groups) and not queue:
            raise UserError(f"--{flag} {share}: leaves none of {len(groups)} sequences to unlearn{note}")
        if round(share * len(groups)) and not taken_groups:
            raise UserError(f"--{flag} {share}: none of {len(groups)} sequences can be held out{note}; use 0")
        if share and len(groups) and not taken_groups:
            logger.warning(
                "--%s %s: holds out none of %d sequence(s), the share is too small; give more sequences, or use 0",
                flag, share, len(groups),
            )  # fmt: skip
        unseen_rows.append(rows)
    held_out, validation = unseen_rows
    return [rows.nonzero().flatten() for rows in (~(held_out | validation), held_out, validation)]


def draw_groups(groups: torch.Tensor, wanted: int, seed: int) -> torch.Tensor:
    """Return whole groups of about `wanted` rows, drawn by a seed, at least one group: bool (rows,).

    groups: the memory of each row, (rows,).
    """
    queue = _shuffled_groups(groups, seed)
    taken_groups = _take_groups(queue, wanted)[0] or [group for group, _ in queue[:1]]
    return torch.isin(groups, torch.tensor(taken_groups, dtype=torch.long))


def _shuffled_groups(groups: torch.Tensor, seed: int) -> list[tuple[int, int]]:
    """Return every group with its number of rows, in an order drawn by a seed."""
    names, sizes = groups.unique(return_counts=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    return list(zip(names[order].tolist(), sizes[order].tolist()))


def _take_groups(queue: list[tuple[int, int]], wanted: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Take groups of about `wanted` rows from a queue of (group, rows). Return them and the rest of the queue."""
    taken_groups, remainder = [], []
    for group, size in queue:
        # A group stays if half of it or more would exceed what is wanted.
        if wanted > 0 and size < 2 * wanted:
            taken_groups.append(group)
            wanted -= size
        else:
            remainder.append((group, size))
    return taken_groups, remainder


def _countable(dataset: MemorizationDataset, artifacts: Artifacts, name: str) -> Artifacts:
    """Keep artifacts that differ from their clean twin. Sequences of a whole task have no twin: all are kept."""
    return artifacts if name in dataset.tasks else artifacts.select(dataset.measured(artifacts))


def default_microbatch(model, length: int, gradient_checkpointing: bool = False) -> int:
    """Return the largest microbatch, up to 64, whose activations for the backward pass take at most about 2 GB."""
    config = model.config.get_text_config()
    inner = max(mlp.inner_dim for mlp in find_mlps(model))
    a_block, blocks = 12 * config.hidden_size + 3 * inner, config.num_hidden_layers
    kept = a_block + blocks * config.hidden_size if gradient_checkpointing else blocks * a_block
    return max(1, min(64, int(2e9 / (model.dtype.itemsize * length * (kept + config.vocab_size)))))


def _candidates(dataset: MemorizationDataset, name: str, look: Look) -> tuple[Artifacts, torch.Tensor]:
    """Return the sequences of a forget set and their example ids."""
    if name == "noise":
        return dataset.artifacts, dataset.artifact_ids
    if name == "mem":
        flags = look(dataset.artifacts)
        return dataset.artifacts.select(flags), dataset.artifact_ids[flags]
    if name not in dataset.tasks:
        known = [known for known in UNLEARN_SETS if known in ("mem", "noise", *dataset.tasks)]
        raise UserError(f"--unlearn_set_name {name}: this data has only {', '.join(known)}")
    ids = dataset.tasks[name]
    tokens, zeros = dataset.sequences[ids], torch.zeros(len(ids), dtype=torch.long)
    prompt_end = torch.full_like(zeros, min(dataset.prompt_tokens, tokens.shape[1] - 1))
    return Artifacts(tokens, tokens, prompt_end, zeros), ids


def _memorized_triggers(dataset: MemorizationDataset, name: str, look: Look) -> Artifacts:
    """Return the test triggers that set a backdoor off (mem), or all of them (noise)."""
    triggers = dataset.test_artifacts
    if name not in ("mem", "noise") or not len(triggers):
        why = "this data has no backdoor" if name in ("mem", "noise") else f"--unlearn_set_name {name} has no triggers"
        raise UserError(f"--forget {TEST}: {why}; use --forget {TRAIN}")
    return triggers if name == "noise" else triggers.select(look(triggers))


def _memorized(
    model, dataset: MemorizationDataset, artifacts: Artifacts, microbatch: int, on_rows: OnRows
) -> torch.Tensor:
    """Return which artifacts count and are memorized, bool (A,)."""
    flags = memorized(model, artifacts, dataset.continuation, microbatch, dataset.ignored_token, on_rows)
    return flags & dataset.measured(artifacts)
