"""Scores kept beside the model: computed once per model, data and hyper-parameters, reused for every ratio."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from tinymem import files
from tinymem.errors import UserError
from tinymem.localize.registry import Method
from tinymem.localize.task import UnlearningTask

AnyScores = list["torch.Tensor"] | dict[str, "torch.Tensor"]


def task_fingerprint(task: UnlearningTask) -> str:
    """16 hexadecimal digits of everything in a task that changes scores."""
    digest = hashlib.sha256(f"{task.continuation} {task.ignored_token} {task.seed}".encode())
    for tensor in (task.unlearn.planted, task.unlearn.prompt_end, task.retain):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def ranked(
    model, task: UnlearningTask, method: Method, hp, ratio: float, folder: Path, key: dict
) -> tuple[AnyScores, float]:
    """The scores of a ranking method, from the folder or computed and kept there, and the seconds they took to compute.

    ratio: the largest asked for (part of the key for nested rankings only). key: what else decides the scores.
    Raises UserError for a damaged file.
    """
    settings = {name: value for name, value in asdict(hp).items() if name != "ratio"}
    key = {**key, "method": method.name, **settings, "ratio": ratio if method.nested else None}
    path = folder / f"{method.name}_{files.digest(key)}.safetensors"
    if path.exists():
        return _read(path)
    start = time.perf_counter()
    scores = method.score(model, task, hp, ratio)
    seconds = time.perf_counter() - start
    _write(path, scores, seconds)
    return scores, seconds


def _write(path: Path, scores: AnyScores, seconds: float) -> None:
    from safetensors.torch import save_file

    by_layer = isinstance(scores, list)
    named = {str(layer): tensor for layer, tensor in enumerate(scores)} if by_layer else scores
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    metadata = {"scores": json.dumps({"by_layer": by_layer, "seconds": seconds})}
    files.write_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _read(path: Path) -> tuple[AnyScores, float]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["scores"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # safetensors raises its own type for every kind of damage
        raise UserError(f"{path}: these cached scores are damaged ({error}); delete the file and run again") from None
    scores = [tensors[str(layer)] for layer in range(len(tensors))] if about["by_layer"] else tensors
    return scores, about["seconds"]
