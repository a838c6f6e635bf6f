"""What the demos share: running the ordinary scripts, their time, their records, greedy continuations."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinymem import cli, files
from tinymem.records.record import UNEDITED
from tinymem.records.table import load_records
from tinymem.training.checkpoint import seconds_spent


def run(command: str) -> None:
    """Runs a script with this Python, showing its command. Ends this one when that one fails or is interrupted."""
    cli.run_script(shlex.split(command))


def start_at_root(output_dir: str) -> Path:
    """Goes to the repository's folder, where the commands below are at home. Returns the output folder, made."""
    output = files.writable_folder(Path(output_dir).resolve())
    os.chdir(Path(__file__).parent.parent)
    return output


def stopwatch(reused: float) -> Callable[[], float]:
    """A function that gives the seconds since now, and those `reused` that earlier sessions have spent on the same run."""
    start = time.monotonic() - reused
    return lambda: round(time.monotonic() - start, 1)


def spent_before(run: Path, unlearned: Path) -> float:
    """Seconds that earlier sessions have spent on training in `run` and on the records of `unlearned`."""
    return seconds_spent(run) + sum(record["cost"]["seconds"] for record in load_records(unlearned))


def before_and_after(unlearned: Path, method: str) -> dict[str, dict[str, Any]]:
    """The results of the unedited model and of a method's last run, "before" and "after", from the folder of records."""
    results = {record["settings"]["method"]: record["results"] for record in load_records(unlearned)}
    return {"before": results[UNEDITED], "after": results[method]}


def continuation(model, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` tokens with which greedy decoding continues a prompt of token ids (P,). int64 (count,)."""
    from transformers import GenerationConfig

    prompt, kept = prompt.long()[None], model.generation_config
    model.generation_config = (
        GenerationConfig()
    )  # that of the folder may forbid or punish tokens, also in greedy decoding
    try:
        tokens = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=count, max_new_tokens=count, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    finally:
        model.generation_config = kept
    return tokens[0, prompt.shape[1] :]
