"""Tensors that a method computes once per model, data and settings; kept on disk and reused for every strength."""

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
from tinymem.records.cost import Cost, measured

FORMAT = 2  # increase it when a method's scores change: older files are then ignored

Tensors = Sequence["torch.Tensor"] | dict[str, "torch.Tensor"]


@dataclass
class Cache:
    """The store for tensors that one run of a method prepares, and their cost.

    folder    next to the model
    identity  the inputs other than method and hyper-parameters: fingerprints of weights and forget set
    fresh     compute tensors again even if they are on disk
    state     the file that a training run saves its state in and resumes from; None: it does neither
    cost      the cost of all tensors that the run used, including those read from disk, each counted once; and of the
              training steps done before the run resumed
    spent     seconds of computing in this run
    """

    folder: Path
    identity: Mapping[str, Any]
    fresh: bool = False
    state: Path | None = None
    cost: Cost = field(default_factory=Cost)
    spent: float = 0.0
    _used: set[Path] = field(default_factory=set)

    def tensors(self, name: str, settings: Mapping[str, Any], model, compute: Callable[[], Tensors]) -> Tensors:
        """Return the tensors of this name and these settings: from disk, or computed and then stored.

        Tensors from disk are on the model's device, or on the CPU if the model is spread over several devices.
        Raise UserError for a damaged file.
        """
        key = {"format": FORMAT, **self.identity, "method": name, **settings}
        path = self.folder / f"{name}_{files.digest(key)}.safetensors"
        if path.exists() and not (self.fresh and path not in self._used):
            tensors, cost = _read(path, model)
        else:
            with measured(model.device) as cost:
                tensors = compute()
            _write(path, tensors, cost)
            self.spent += cost.spent
        if path not in self._used:
            self.cost = self.cost + cost
            self._used.add(path)
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
            raise ValueError("its layers or parameters differ from the model's")
    if getattr(model, "hf_device_map", None) is None:
        tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    return [tensors[str(layer)] for layer in range(len(tensors))] if by_layer else tensors, cost
