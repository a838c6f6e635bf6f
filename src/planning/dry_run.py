"""Plans of the chosen methods on a production model: printed by --dry_run, checked before weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinymem import allocator
from tinymem.data.passages import PassageSettings, check_passages
from tinymem.data.production import ProductionSettings, check_length, load_memorized, memorized_texts
from tinymem.data.token_sets import read_token_set
from tinymem.errors import UserError
from tinymem.localize.method import Method
from tinymem.localize.task import TaskSettings, default_microbatch
from tinymem.models.known import known_config
from tinymem.models.production import LoadSettings, free_bytes, open_description
from tinymem.planning.memory import Shape, shape_of
from tinymem.planning.plan import Plan, Sizes, plan
from tinymem.training.plant import training_bytes

STUDY_SEQUENCES, STUDY_LENGTH = 505, 80  # sizes of the study's Pythia data, assumed if no file is given
KEPT = 2.5  # if freed memory is kept (tinymem.allocator): factor on everything except the weights


def planned_shape(name: str, loading: LoadSettings, device: torch.device, well_known: bool) -> Shape:
    """Return the shape of a model from a folder, the hub or its cache, or with `well_known` from a built-in config."""
    config = known_config(name) if well_known and not Path(name).is_dir() else None
    config = config or open_description(name, loading.step, for_text=False)[0]
    return shape_of(config, getattr(torch, loading.dtype), device.type, name)


def planned_sizes(shape: Shape, data: ProductionSettings, passages: PassageSettings, task: TaskSettings) -> Sizes:
    """Return upper bounds on the work: every given sequence is assumed to be memorized."""
    config = shape.model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or STUDY_LENGTH
    count, length = STUDY_SEQUENCES, max(min(STUDY_LENGTH, longest), data.needed)
    if passages.plant is not None:
        check_passages(passages, data, config)
        count, length = passages.plant_sequences, passages.plant_tokens
    elif data.memorized is not None and data.memorizes_text:
        count, length = len(memorized_texts(data.memorized, data.text_column)), data.needed
    elif data.memorized is not None:
        count, length = load_memorized(data, config).tokens.shape
    check_length("--prompt_tokens, --continuation_tokens", length, config)
    if data.random is not None:
        read_token_set(data.random, config.vocab_size)
    forget = count - round(task.holdout_fraction * count) - round(task.validation_fraction * count)
    if not forget:
        raise UserError(f"--holdout_fraction {task.holdout_fraction}: leaves none of {count} sequences to unlearn")
    return Sizes(
        forget=forget,
        retain=min(data.num_retain, task.max_retain),
        length=length,
        prompt=data.prompt_tokens,
        microbatch=task.microbatch or default_microbatch(shape.model, length, task.gradient_checkpointing),
        gradient_checkpointing=task.gradient_checkpointing,
    )


def plans(shape: Shape, sizes: Sizes, methods: Sequence[tuple[Method, Any]]) -> list[tuple[str, Plan]]:
    """Return the name and the plan of each method."""
    return [(method.name, plan(method, shape, sizes, hp)) for method, hp in methods]


def planting_bytes(shape: Shape, loading: LoadSettings) -> int:
    """Return the bytes that planting needs, without activations."""
    return 4 * shape.parameters + training_bytes(shape.model, getattr(torch, loading.dtype))


def choose_allocator(planned: Sequence[tuple[str, Plan]], device: torch.device, before: int = 0) -> None:
    """On a CPU, let the process keep freed memory, which is faster, unless the plans leave too little room for it.

    before: bytes that are allocated, and freed, before the methods begin (planting).
    """
    if device.type == "cpu" and planned:
        most = max(KEPT * before, *(each.weights + KEPT * each.beside for _, each in planned))
        (allocator.keep_freed_memory if most < free_bytes(device) else allocator.return_freed_memory)()
