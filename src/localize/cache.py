"""Tensors that a method computes once per model, data and hyper-parameters, kept on disk and reused for every strength."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tinymem import files
from tinymem.errors import reading
from tinymem.inputs import check_file, check_value, parse_json, read_settings
from tinymem.records.record import Cost, measured

FORMAT = 2  # raise it when a method comes to give other scores: older files are then left alone

Tensors = Sequence["torch.Tensor"] | dict[str, "torch.Tensor"]


@dataclass
class Cache:
    """Where one run of a method keeps what it prepares, and what that cost.

    folder    beside the model
    identity  what decides the tensors besides method and hyper-parameters: fingerprints of weights and forget set
    fresh     compute again what is there
    cost      of everything that the run prepared, also where it came from the disk
    spent     seconds that were really spent on it in this run
    """

    folder: Path
    identity: Mapping[str, Any]
    fresh: bool = False
    cost: Cost = field(default_factory=Cost)
    spent: float = 0.0

    def tensors(self, name: str, settings: Mapping[str, Any], model, compute: Callable[[], Tensors]) -> Tensors:
        """Return the tensors of this name and these settings, from the disk or computed and kept.

        Tensors from the disk are on the model's device; those of a model that is spread over several are on the CPU.
        Raise UserError for a damaged file.
        """
        key = {"format": FORMAT, **self.identity, "method": name, **settings}
        path = self.folder / f"{name}_{files.digest(key)}.safetensors"
        if path.exists() and not self.fresh:
            tensors, cost = _read(path, model)
        else:
            with measured(model.device) as cost:
                tensors = compute()
            _write(path, tensors, cost)
            self.spent += cost.seconds
        self.cost = self.cost + cost
        return tensors


def _write(path: Path, tensors: Tensors, cost: Cost) -> None:
    from safetensors.torch import save_file

    by_layer = not isinstance(tensors, dict)
    named = tensors if isinstance(tensors, dict) else {str(layer): tensor for layer, tensor in enumerate(tensors)}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    metadata = {"scores": json.dumps({"by_layer": by_layer, "cost": vars(cost)})}
    files.write_file(path, lambda temporary: save_file(stored, temporary, metadata=metadata))


def _read(path: Path, model) -> tuple[Tensors, Cost]:
    from safetensors import safe_open

    check_file(path, share=float("inf"))
    with reading(path, "these cached scores are damaged ({why}); delete the file and run again"):
        with safe_open(path, framework="pt") as file:
            about = parse_json(file.metadata()["scores"], path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        by_layer = check_value(about["by_layer"], bool, "by_layer", path)
        cost = read_settings(Cost, about["cost"], path, whole=True)
        expected = {str(layer) for layer in range(len(tensors))} if by_layer else set(dict(model.named_parameters()))
        if by_layer and set(tensors) != expected or not set(tensors) <= expected:
            raise ValueError("other layers or parameters than the model has")
    if getattr(model, "hf_device_map", None) is None:
        tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    return [tensors[str(layer)] for layer in range(len(tensors))] if by_layer else tensors, cost
