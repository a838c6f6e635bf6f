"""What a method will take on a model, known before the model is loaded: memory by what it is for, and passes.

Every method has a function `plan` of its own. It runs a small piece of the method's own code on fake tensors (see
`tinymem.models.memory`) for the peak, and says in formulas what of that peak is what, and how many passes there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from tinymem.data.dataset import Artifacts
from tinymem.errors import OutOfMemory
from tinymem.localize.task import UnlearningTask
from tinymem.models.memory import Shape
from tinymem.models.production import RESERVE, free_bytes

GB = 1e9
CHECKPOINTED = 0.4  # at most so much of the activations is left by gradient checkpointing in models of a few layers


@dataclass(frozen=True)
class Sizes:
    """How much a method has to do.

    unlearn, retain   sequences to forget and to keep
    length, prompt    tokens of a sequence, and of them those of the prompt
    microbatch        sequences per forward pass
    gradient_checkpointing   as in UnlearningTask
    """

    unlearn: int
    retain: int
    length: int
    prompt: int
    microbatch: int
    gradient_checkpointing: bool = False

    def passes(self, rows: int) -> int:
        """Forward passes over so many sequences."""
        return -(-rows // self.microbatch)

    def gathered(self, rows: int) -> int:
        """How many of a batch's sequences show its peak: two microbatches, for the gradients of one wait for the next."""
        return min(rows, 2 * self.microbatch)

    def task(self, unlearn: int, retain: int = 1) -> UnlearningTask:
        """A task of sequences of zeros, to run a method on fake tensors."""
        rows = [torch.zeros(count, self.length, dtype=torch.long) for count in (unlearn, retain)]
        zeros = torch.zeros(unlearn, dtype=torch.long)
        artifacts = Artifacts(rows[0], rows[0], zeros + self.prompt, zeros)
        return UnlearningTask(
            unlearn=artifacts,
            retain=rows[1],
            held_out=artifacts,
            continuation=self.length - self.prompt,
            microbatch=self.microbatch,
            gradient_checkpointing=self.gradient_checkpointing,
        )


@dataclass(frozen=True)
class Plan:
    """What a method will take. Bytes, at the moment when all of them together are most:

    weights      of the model
    scores       one number for each neuron or weight that is ranked; gradients may turn into them in place
    gradients    of parameters
    state        of an optimizer, what a mask left out, Fisher matrices
    activations  everything else
    forward, backward   passes of at most a microbatch (methods that may stop early: at most so many)
    """

    weights: int
    scores: int
    gradients: int
    state: int
    activations: int
    forward: int
    backward: int

    @property
    def peak(self) -> int:
        """Bytes beside what the process takes without a model."""
        return self.weights + self.scores + self.gradients + self.state + self.activations


def plan(method, shape: Shape, sizes: Sizes, hp: Any) -> Plan:
    """The plan of a method of the registry, for all ratios of `hp`."""
    return method.plan(shape, sizes, method.resolve(hp, shape.parameters))


def new_plan(
    shape: Shape, peak: int, forward: int, backward: int = 0, scores: int = 0, gradients: int = 0, state: int = 0
) -> Plan:
    """A plan whose parts other than the weights add up to `peak` bytes; what the others leave of it is activations."""
    rest = max(0, peak - scores - gradients - state)
    return Plan(shape.weight_bytes, scores, gradients, state, rest, forward, backward)


def gradient_bytes(shape: Shape, entries: int, passes: int) -> int:
    """Bytes of the gradients of so many entries: float32 where several passes add up or weights are float16, else the
    weights' own type (see `tinymem.localize.learning.gradients`).
    """
    return entries * (4 if passes > 1 or shape.model.dtype == torch.float16 else shape.itemsize)


def plan_rows(plans: Iterable[tuple[str, Plan]]) -> list[dict[str, Any]]:
    """One row a method for a table: GB (1e9 bytes) and passes."""
    names = ("weights", "scores", "gradients", "state", "activations", "peak")
    return [
        {
            "method": name,
            **{f"{part}_gb": round(getattr(planned, part) / GB, 3) for part in names},
            "forward_passes": planned.forward,
            "backward_passes": planned.backward,
        }
        for name, planned in plans
    ]


def check_fits(
    name: str, planned: Plan, sizes: Sizes, itemsize: int, device: str | torch.device, device_map: str | None = None
) -> None:
    """OutOfMemory where a plan takes more memory than is free: how much is missing, and which flags help.

    name: of the method. itemsize: bytes of a weight.
    """
    room = (1 - RESERVE) * free_bytes(device, device_map)
    missing = planned.peak - room
    if missing <= 0:
        return
    # What a flag leaves of weights and of activations.
    ways = {"--microbatch 1": (1.0, 1 / sizes.microbatch)} if sizes.microbatch > 1 else {}
    if planned.backward and not sizes.gradient_checkpointing:
        ways["--gradient_checkpointing"] = (1.0, CHECKPOINTED)
    if itemsize == 4:
        ways["--dtype bfloat16"] = (0.5, 0.5)

    def enough(flags: Iterable[str]) -> bool:
        weights, activations = (math.prod(ways[flag][part] for flag in flags) for part in (0, 1))
        saved = (1 - weights) * planned.weights + (1 - activations) * planned.activations
        return saved >= missing

    alone = [flag for flag in ways if enough([flag])]
    if alone:
        advice = f"{' or '.join(alone)} helps"
    elif enough(ways):
        advice = f"{', '.join(ways)} together help"
    else:
        advice = "take --device_map auto over several GPUs, a smaller model or a larger machine"
    raise OutOfMemory(
        f"{name}: takes {planned.peak / GB:.1f} GB at its peak, {missing / GB:.1f} GB more than is free; {advice}"
    )
