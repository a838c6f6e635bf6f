"""Plans of methods on a production model: printed by --dry_run, and checked before weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from tinymem.models.adapter import find_blocks
from tinymem.models.known_configs import known_config
from tinymem.models.production import LoadSettings, free_bytes, open_description
from tinymem.planning.memory import Shape, shape_of
from tinymem.planning.plan import Plan, Sizes, plan
from tinymem.training.plant import training_bytes
from tinymem.training.processes import ALONE, Processes

STUDY_SEQUENCES, STUDY_LENGTH = 505, 80  # the study's Pythia data; assumed if no file is given
KEPT = 2.5  # factor on everything except the weights if freed memory is kept (tinymem.allocator)


def planned_shape(name: str, loading: LoadSettings, device: torch.device, well_known: bool) -> Shape:
    """Return the shape of a model from a folder, the hub or its cache, or (`well_known`) from a built-in config."""
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


def plans(
    shape: Shape, sizes: Sizes, methods: Sequence[tuple[Method, Any]], processes: Processes = ALONE
) -> list[tuple[str, Plan]]:
    """Return the name and plan of each method, for one of the processes that share its batches."""
    found = []
    for method, hp in methods:
        if processes.size > 1:
            hp = replace(hp, batch_size=max(2, hp.batch_size // processes.size))
        one = plan(method, shape, sizes, hp)
        found.append((method.name, sharded(one, shape, processes.size) if processes.sharded else one))
    return found


def sharded(whole: Plan, shape: Shape, size: int) -> Plan:
    """Return the plan of a process with sharded training state, from the plan of a process that has all of it.

    For each weight, a single process holds a copy from before the edit, a float32 gradient, two moments of AdamW and,
    in half precision, a master copy. A sharded process holds its share of the last four for the blocks, and two
    gathered blocks. Weights outside the blocks are copied once and have all four.
    """
    width, blocks = shape.model.dtype.itemsize, find_blocks(shape.model)[1]
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    inside, outside = sum(sizes), shape.parameters - sum(sizes)
    state = 12 if width >= 4 else 16
    before = (width + state) * shape.parameters
    after = -(-16 * inside // size) + 2 * width * max(sizes) + (width + state) * outside
    return replace(whole, beside=max(0, whole.beside - before) + after)


def planting_bytes(shape: Shape, loading: LoadSettings) -> int:
    """Return the bytes that planting needs, without activations."""
    return 4 * shape.parameters + training_bytes(shape.model, getattr(torch, loading.dtype))


def choose_allocator(planned: Sequence[tuple[str, Plan]], device: torch.device, before: int = 0) -> None:
    """On a CPU, keep freed memory in the process, which is faster, unless the plans leave too little room for it.

    before: bytes that are allocated and freed before the methods begin (planting).
    """
    if device.type == "cpu" and planned:
        most = max(KEPT * before, *(each.weights + KEPT * each.beside for _, each in planned))
        (allocator.keep_freed_memory if most < free_bytes(device) else allocator.return_freed_memory)()
