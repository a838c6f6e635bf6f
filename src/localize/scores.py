"""Scores kept beside the model: computed once per model, data and hyper-parameters, reused for every ratio."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from tinymem import files
from tinymem.errors import reading
from tinymem.localize.learning import check_scores
from tinymem.localize.registry import Method
from tinymem.localize.task import UnlearningTask
from tinymem.records.record import Cost, measured

FORMAT = 2  # raise it when a method comes to give other scores: older files are then left alone

AnyScores = list["torch.Tensor"] | dict[str, "torch.Tensor"]


def task_fingerprint(task: UnlearningTask) -> str:
    """16 hexadecimal digits of everything in a task that changes scores."""
    digest = hashlib.sha256(f"{task.continuation} {task.ignored_token} {task.seed}".encode())
    for tensor in (task.unlearn.planted, task.unlearn.prompt_end, task.retain):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def ranked(
    model,
    task: UnlearningTask,
    method: Method,
    hp,
    folder: Path,
    key: dict,
    fresh: bool = False,
    on_estimate: Callable[[float], None] = lambda seconds: None,
) -> tuple[AnyScores, Cost]:
    """The scores of a ranking method, from the folder or computed and kept there, and what it cost to compute them.

    key: what decides the scores beside method and hyper-parameters, of which the largest ratio matters to nested
    rankings only. fresh: compute them even if they are there. on_estimate is given the seconds that it will take, where
    the method can tell. Raises UserError for a damaged file, NotFinite for scores that rank nothing.
    """
    settings = {name: value for name, value in asdict(hp).items() if name != "ratio"}
    ratio = max(hp.ratio)
    key = {"format": FORMAT, **key, "method": method.name, **settings, "ratio": ratio if method.nested else None}
    path = folder / f"{method.name}_{files.digest(key)}.safetensors"
    if path.exists() and not fresh:
        return _read(path, model)
    if method.estimate is not None:
        on_estimate(method.estimate(model, task, hp))
    with measured(model.device) as cost:
        scores = method.score(model, task, hp, ratio)
    check_scores(scores if isinstance(scores, list) else scores.values())
    _write(path, scores, cost)
    return scores, cost


def _write(path: Path, scores: AnyScores, cost: Cost) -> None:
    from safetensors.torch import save_file

    by_layer = isinstance(scores, list)
    named = {str(layer): tensor for layer, tensor in enumerate(scores)} if by_layer else scores
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    metadata = {"scores": json.dumps({"by_layer": by_layer, "cost": vars(cost)})}
    files.write_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _read(path: Path, model) -> tuple[AnyScores, Cost]:
    """On the model's device; of a model that is spread over several on the CPU."""
    from safetensors import safe_open

    with reading(path, "these cached scores are damaged ({why}); delete the file and run again"):
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["scores"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        cost = Cost(**about["cost"])
    if getattr(model, "hf_device_map", None) is None:
        tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    return [tensors[str(layer)] for layer in range(len(tensors))] if about["by_layer"] else tensors, cost
