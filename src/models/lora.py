"""LoRA: train a low-rank change of linear layers and leave the weights alone (Hu et al. 2021, arXiv 2106.09685).

A layer W x becomes W x + (alpha / rank) B A x, with A (rank, in) and B (out, rank); B starts at 0. The layers are those
of `peft`, so saved adapters open there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinymem import files
from tinymem.errors import UserError
from tinymem.models.adapter import find_blocks, linear_weights
from tinymem.models.edit import Weights
from tinymem.models.trainable import frozen

ADAPTER_NAME = "default"  # peft's name for an adapter without a name


@dataclass(frozen=True)
class Adapter:
    """A trained low-rank change: peft's config, and A and B of each layer by the names that peft saves."""

    config: Any
    tensors: Mapping[str, torch.Tensor]

    def save(self, folder: Path, model_name: str, revision: str | None = None) -> Path:
        """Write a folder that peft opens, atomically.

        model_name, revision: the unedited model's folder, or its name on the hub and the revision there.
        """
        from safetensors.torch import save_file

        def write(temporary: Path) -> None:
            self.config.base_model_name_or_path, self.config.revision = model_name, revision
            self.config.inference_mode = True
            self.config.target_modules = sorted(self.config.target_modules)  # peft's set has no fixed order
            self.config.save_pretrained(temporary)
            save_file(dict(self.tensors), temporary / "adapter_model.safetensors", metadata={"format": "pt"})

        return files.write_folder(folder, write)


class LowRank:
    """Low-rank changes of some linear layers of a model, as `low_rank` makes them.

    parameters: A and B of every layer, float32 or finer, on the layer's device.
    """

    def __init__(self, model, config: Any, layers: Mapping[str, Any]) -> None:
        self._model, self._config, self._layers = model, config, layers
        self.parameters = [p for layer in layers.values() for p in (_a(layer), _b(layer))]

    def attach(self) -> None:
        """Put the layers with a change in place of the model's own."""
        for name, layer in self._layers.items():
            _put(self._model, name, layer)

    def detach(self) -> None:
        """Put the model's own layers back."""
        for name, layer in self._layers.items():
            _put(self._model, name, layer.base_layer)

    @contextmanager
    def detached(self) -> Iterator[Any]:
        """Yield the model without the change."""
        self.detach()
        try:
            yield self._model
        finally:
            self.attach()

    @contextmanager
    def taken(self, notes: Mapping[str, float]) -> Iterator[Weights]:
        """Yield the edit that the training has made so far, with the model as it was."""
        edit = Weights(self.merged(), notes, self.adapter())
        with self.detached():
            yield edit

    def merged(self) -> dict[str, torch.Tensor]:
        """Return the weights with the change in them, by state-dict key, shaped and rounded as stored."""
        values = {}
        for name, layer in self._layers.items():
            weight = layer.base_layer.weight
            with torch.no_grad():
                values[f"{name}.weight"] = (weight + layer.get_delta_weight(ADAPTER_NAME)).to(weight.dtype)
        return values

    def adapter(self) -> Adapter:
        """Return a copy of the change as it is now."""
        tensors = {}
        for name, layer in self._layers.items():
            for part, parameter in (("lora_A", _a(layer)), ("lora_B", _b(layer))):
                tensors[f"base_model.model.{name}.{part}.weight"] = parameter.detach().cpu().clone()
        return Adapter(self._config, tensors)


@contextmanager
def low_rank(model, rank: int, alpha: float, targets: Sequence[str] | None, seed: int) -> Iterator[LowRank]:
    """Attach low-rank changes within the block, all zero at first. On leaving, restore every bit of the model.

    targets: the last parts of the names of layers in the blocks; None: all linear layers there. seed: of every A, which
    is the same on all devices. Raise UserError if no layer has such a name (the error lists the names), or if the rank
    exceeds the layers' sizes.
    """
    from peft import LoraConfig
    from peft.mapping import inject_adapter_in_model
    from torch.utils._python_dispatch import _disable_current_modes

    names = targeted(model, targets)
    check_rank(model, names, rank)
    stored = linear_weights(model)
    scale: Any = alpha  # peft divides it by the rank, whole or not
    config = LoraConfig(
        r=rank, lora_alpha=scale, target_modules=names, task_type="CAUSAL_LM",
        fan_in_fan_out=stored[f"{names[0]}.weight"].transposed,
    )  # fmt: skip
    with frozen(model):
        own = {name: model.get_submodule(name) for name in names}
        try:
            # Without the modes of plans, since peft cannot move fake tensors; `_initialize` gives the numbers.
            with _disable_current_modes():
                inject_adapter_in_model(config, model, ADAPTER_NAME, low_cpu_mem_usage=True)
            layers = {name: model.get_submodule(name) for name in names}
            generator = torch.Generator().manual_seed(seed)
            for layer in layers.values():
                _initialize(layer, generator)
            change = LowRank(model, config, layers)
            yield change
        finally:
            for name, module in own.items():
                _put(model, name, module)
            vars(model).pop("peft_config", None)


def targeted(model, targets: Sequence[str] | None) -> list[str]:
    """Return the names of the linear layers in a model's blocks; with `targets`, those whose names end in one of them.

    Raise UserError if there are none.
    """
    prefix, _ = find_blocks(model)
    names = [name.removesuffix(".weight") for name in linear_weights(model) if name.startswith(f"{prefix}.")]
    if not names:
        raise UserError(f"--lora_rank: {type(model).__name__} has no linear layers in its blocks; leave it out")
    for target in targets or ():
        if not any(_ends(name, target) for name in names):
            known = dict.fromkeys(name.rpartition(".")[2] for name in names)
            raise UserError(f"--lora_targets {target}: must be one or more of {', '.join(known)}")
    return [name for name in names if targets is None or any(_ends(name, target) for target in targets)]


def check_rank(model, names: Sequence[str], rank: int) -> None:
    """Raise UserError for a rank that none of these layers can have."""
    most = max(min(model.get_submodule(name).weight.shape) for name in names)
    if rank > most:
        raise UserError(f"--lora_rank {rank}: must be <= {most}, the smaller side of this model's largest linear layer")


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _initialize(layer: Any, generator: torch.Generator) -> None:
    """Set A as peft does, from a generator on the CPU, and B to 0; both float32 or finer."""
    weight = layer.base_layer.weight
    kind = torch.promote_types(weight.dtype, torch.float32)
    start = torch.empty(_a(layer).shape)
    torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    layer.lora_A[ADAPTER_NAME].weight = torch.nn.Parameter(start.to(weight.device, kind))
    zeros = torch.zeros(_b(layer).shape, dtype=kind, device=weight.device)
    layer.lora_B[ADAPTER_NAME].weight = torch.nn.Parameter(zeros)


def _a(layer: Any) -> torch.nn.Parameter:
    return layer.lora_A[ADAPTER_NAME].weight


def _b(layer: Any) -> torch.nn.Parameter:
    return layer.lora_B[ADAPTER_NAME].weight


def _put(model, name: str, module: torch.nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
