"""What an unlearning method is given: sequences to forget, sequences to keep, and how much memory it may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.data.production import groups_sharing_tokens
from tinymem.errors import UserError, finite
from tinymem.localize.cache import Cache
from tinymem.metrics.memorization import memorized
from tinymem.models.adapter import find_mlps
from tinymem.models.losses import loss_mask, token_losses
from tinymem.options import SEEDS, check_options, option

# Task settings that change how much memory a method takes, but not what comes out: no part of a run's identity.
MEMORY_SETTINGS = ("microbatch", "gradient_checkpointing")
# Shorter runs are headings and names: at 10, 385 of 2000 rows of WikiText-2 are one group, at 16 they are 17. The 505
# sequences that Pythia-6.9B has memorized share no 12 tokens.
SHARED_TOKENS = 16
PRODUCTION_HELD_OUT = 0.5  # holdout_fraction of production models, unless told otherwise
UNLEARN_SETS = ("mem", "noise", "seven", "two", "three", "four", "five")


@dataclass(frozen=True)
class TaskSettings:
    """Unlearning task"""

    unlearn_set_name: str = option(
        "mem",
        "what to forget: memorized artifacts, all artifacts (noise), or a task's training set",
        choices=UNLEARN_SETS,
    )
    holdout_fraction: float = option(
        0.0, "share of the forget set never shown to the method, measured apart", low=0.0, below=1.0
    )
    max_retain: int = option(100000, "at most this many retain sequences", low=1)
    unlearn_seed: int = option(0, "seed of the method and of the held-out split", low=0, high=SEEDS)
    microbatch: int | None = option(
        None,
        "sequences per forward pass: bounds memory, does not change results; not given: from the model's size, "
        "at most 64",
        low=1,
    )
    gradient_checkpointing: bool = option(
        False, "keep only the blocks' inputs for the backward pass: half the speed, far less memory, same results"
    )

    __post_init__ = check_options

    def deciding(self) -> dict[str, Any]:
        """The settings that change results, as they stand in records."""
        return {name: value for name, value in vars(self).items() if name not in MEMORY_SETTINGS}


@dataclass(frozen=True)
class UnlearningTask:
    """What to forget and what to keep. F, R, H sequences of T tokens.

    forget     (F, T) sequences to forget, with prompt and clean twin
    retain     (R, T) sequences to keep
    held_out   (H, T) sequences of the forget set that the method never sees
    continuation   k: the measured tokens are prompt_end .. prompt_end + k - 1
    ignored_token  token id that no loss counts, or None
    seed           of everything random in a method
    microbatch     sequences per forward pass
    gradient_checkpointing   run blocks again in the backward pass instead of keeping their activations
    shown      those of `forget` that can be told from their clean twin, by which forgetting is measured; None: all
    cache      where a method keeps what it computes once for all its strengths; None: nowhere
    """

    forget: Artifacts
    retain: torch.Tensor
    held_out: Artifacts
    continuation: int
    ignored_token: int | None = None
    seed: int = 0
    microbatch: int = 64
    gradient_checkpointing: bool = False
    shown: Artifacts | None = None
    cache: Cache | None = None

    def generator(self) -> torch.Generator:
        """A fresh generator on the CPU, so that every device draws the same numbers."""
        return torch.Generator().manual_seed(self.seed)

    def mean_loss(self, model, tokens: torch.Tensor) -> float:
        """Mean token loss in nats over any number of sequences."""
        total = count = 0.0
        for part in tokens.split(self.microbatch):
            with torch.no_grad():
                losses = token_losses(model, part)
            mask = loss_mask(part, self.ignored_token).to(losses.device)
            total += (losses * mask).sum().item()
            count += mask.sum().item()
        return total / max(count, 1)


def unlearning_task(model, dataset: MemorizationDataset, settings: TaskSettings) -> UnlearningTask:
    """Measures what the model has memorized and divides the training data into forget, held-out and retain sets.

    The forget set may be empty: nothing is memorized, nothing to do. Raises UserError for a set that the dataset
    does not have, or a held-out part that leaves nothing to unlearn.
    """
    length, checkpointing = dataset.sequences.shape[1], settings.gradient_checkpointing
    microbatch = settings.microbatch or default_microbatch(model, length, checkpointing)
    with finite("measuring what is memorized"):
        artifacts, ids = _candidates(model, dataset, settings.unlearn_set_name, microbatch)
    held_out, forget = (artifacts.select(rows) for rows in divided(memories(dataset, artifacts), settings))
    keep = torch.zeros(len(dataset.sequences), dtype=torch.bool)
    keep[dataset.order] = True
    keep[ids] = False
    retain = keep.nonzero().flatten()
    if not len(retain):
        raise UserError(f"--unlearn_set_name {settings.unlearn_set_name}: leaves no retain set")
    if len(retain) > settings.max_retain:
        chosen = torch.randperm(len(retain), generator=torch.Generator().manual_seed(settings.unlearn_seed))
        retain = retain[chosen[: settings.max_retain].sort().values]
    return UnlearningTask(
        forget=forget,
        shown=_countable(dataset, forget, settings.unlearn_set_name),
        retain=dataset.sequences[retain],
        held_out=_countable(dataset, held_out, settings.unlearn_set_name),
        continuation=dataset.continuation,
        ignored_token=dataset.ignored_token,
        seed=settings.unlearn_seed,
        microbatch=microbatch,
        gradient_checkpointing=checkpointing,
    )


def memories(dataset: MemorizationDataset, artifacts: Artifacts) -> torch.Tensor:
    """Which memory each artifact belongs to, int64 (A,): a number for each. Whoever sees one of its sequences knows it.

    Of real text, sequences that have SHARED_TOKENS consecutive tokens in common (half a continuation, where that is
    less), at whatever place, are one memory; of one token repeated it takes half a continuation. Sequences that this
    software made are each their own: numbers of one task share long runs, and a backdoor's continuations are all alike.
    """
    if dataset.kind != "natural" or not len(artifacts):
        return torch.arange(len(artifacts))
    half = max(1, dataset.continuation // 2)
    return groups_sharing_tokens(artifacts.planted, min(half, SHARED_TOKENS), half)


def divided(groups: torch.Tensor, settings: TaskSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to hold out and rows to unlearn, sorted: whole groups, of about holdout_fraction of the rows.

    groups: the memory of each row, (rows,). UserError where nothing would be left to unlearn, or nothing held out
    although there is more than one row.
    """
    names, sizes = groups.unique(return_counts=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(settings.unlearn_seed))
    wanted = round(settings.holdout_fraction * len(groups))
    # A group that is more than half beyond what is wanted stays with the rows to unlearn.
    hidden, room = [], wanted
    for group, size in zip(names[order].tolist(), sizes[order].tolist()):
        if room > 0 and size < 2 * room:
            hidden.append(group)
            room -= size
    held_out = torch.isin(groups, torch.tensor(hidden, dtype=torch.long))
    many = f" (in {len(names)} memories: sequences that share text are shown or held out together)"
    note = many if len(names) < len(groups) else ""
    if len(groups) and held_out.all():
        raise UserError(
            f"--holdout_fraction {settings.holdout_fraction}: leaves none of {len(groups)} sequences to unlearn{note}"
        )
    if wanted and not held_out.any():
        raise UserError(
            f"--holdout_fraction {settings.holdout_fraction}: none of {len(groups)} sequences can be held out{note}; use 0"
        )
    return held_out.nonzero().flatten(), (~held_out).nonzero().flatten()


def _countable(dataset: MemorizationDataset, artifacts: Artifacts, name: str) -> Artifacts:
    """Of artifacts those that can be told from their clean twin; sequences of a whole task have none and all count."""
    return artifacts if name in dataset.tasks else artifacts.select(dataset.measured(artifacts))


def default_microbatch(model, length: int, gradient_checkpointing: bool = False) -> int:
    """The most sequences, up to 64, whose activations, kept for the backward pass, take at most about 2 GB."""
    config = model.config.get_text_config()
    inner = max(mlp.inner_dim for mlp in find_mlps(model))
    a_block, blocks = 12 * config.hidden_size + 3 * inner, config.num_hidden_layers
    kept = a_block + blocks * config.hidden_size if gradient_checkpointing else blocks * a_block
    return max(1, min(64, int(2e9 / (model.dtype.itemsize * length * (kept + config.vocab_size)))))


def _candidates(model, dataset: MemorizationDataset, name: str, microbatch: int) -> tuple[Artifacts, torch.Tensor]:
    """The sequences of an forget set and their example ids."""
    if name == "noise":
        return dataset.artifacts, dataset.artifact_ids
    if name == "mem":
        flags = memorized(model, dataset.artifacts, dataset.continuation, microbatch, dataset.ignored_token)
        flags &= dataset.measured(dataset.artifacts)
        return dataset.artifacts.select(flags), dataset.artifact_ids[flags]
    if name not in dataset.tasks:
        known = [known for known in UNLEARN_SETS if known in ("mem", "noise", *dataset.tasks)]
        raise UserError(f"--unlearn_set_name {name}: this data has only {', '.join(known)}")
    ids = dataset.tasks[name]
    tokens, zeros = dataset.sequences[ids], torch.zeros(len(ids), dtype=torch.long)
    prompt_end = torch.full_like(zeros, min(dataset.prompt_tokens, tokens.shape[1] - 1))
    return Artifacts(tokens, tokens, prompt_end, zeros), ids
