"""Plans: the peak memory and passes of a method on a model, known before the model is loaded.

Methods need no formulas. The method itself runs on fake tensors (see `tinymem.planning.memory`): once for the peak, and
in a model of few blocks to count the passes of its first steps. What a run of few passes on few rows cannot show, a
method states: `steps` or `passes`, `enough`, `idle` and `held_bytes` of `tinymem.localize.method.Method`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tinymem.data.dataset import Artifacts
from tinymem.errors import OutOfMemory, UserError, first_line
from tinymem.localize.method import Method
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import find_blocks
from tinymem.models.production import RESERVE, free_bytes
from tinymem.planning.memory import Shape, shape_of

GB = 1e9
# errors of code that fake tensors cannot run: a run does not need a plan
FAILURES = (RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Sizes:
    """The amount of work for a method.

    forget, retain    numbers of sequences
    length, prompt    tokens of a sequence, and of its prompt
    microbatch        sequences per forward pass
    gradient_checkpointing   as in UnlearningTask
    """

    forget: int
    retain: int
    length: int
    prompt: int
    microbatch: int
    gradient_checkpointing: bool = False

    def passes(self, rows: int) -> int:
        """Return the number of forward passes over this many sequences."""
        return -(-rows // self.microbatch)

    def task(self) -> UnlearningTask:
        """Return a task of these sizes. Sequences are filled with zeros, clean twins with ones."""
        forget, retain = (torch.zeros(rows, self.length, dtype=torch.long) for rows in (self.forget, self.retain))
        zeros = torch.zeros(self.forget, dtype=torch.long)
        artifacts = Artifacts(forget, forget + 1, zeros + self.prompt, zeros)
        return UnlearningTask(
            forget=artifacts,
            retain=retain,
            held_out=artifacts,
            continuation=self.length - self.prompt,
            microbatch=self.microbatch,
            gradient_checkpointing=self.gradient_checkpointing,
        )


@dataclass(frozen=True)
class Plan:
    """The memory and passes of a method. Negative numbers raise ValueError.

    weights    bytes of the model
    beside     peak bytes in addition to the weights
    forward, backward   passes of at most a microbatch (upper bounds, since methods may stop early)
    """

    weights: int
    beside: int
    forward: int
    backward: int

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0:
            raise ValueError(f"a plan has no negative numbers: {self}")

    @property
    def peak(self) -> int:
        """The peak bytes, without those the process uses before the model is loaded."""
        return self.weights + self.beside

    def row(self, name: str) -> dict[str, Any]:
        """Return a method's row in a table, in GB (1e9 bytes) and passes."""
        sizes = {"weights_gb": self.weights, "beside_gb": self.beside, "peak_gb": self.peak}
        passes = {"forward_passes": self.forward, "backward_passes": self.backward}
        return {"method": name, **{part: round(size / GB, 3) for part, size in sizes.items()}, **passes}


def plan(method: Method, shape: Shape, sizes: Sizes, hp: Any) -> Plan:
    """Return the plan of a method over all strengths of `hp`."""
    first = first_steps(method, shape, sizes, hp)
    return Plan(shape.weight_bytes, peak(method, shape, sizes, hp, first), *passes(method, shape, sizes, hp, first))


def first_steps(method: Method, shape: Shape, sizes: Sizes, hp: Any) -> list[Passes]:
    """Return the passes of a method's first steps in the model with one block and with two, if they can be counted."""
    hp = method.resolve(hp, shape.parameters)
    return [] if method.passes else [_first_steps(method, cut, sizes, hp) for cut in shape.cuts]


def passes(method: Method, shape: Shape, sizes: Sizes, hp: Any, first: Sequence[Passes]) -> tuple[int, int]:
    """Return a run's forward and backward passes, extrapolated from those of its first steps.

    Every further block is assumed to add as many passes as the second block.
    """
    hp, task = method.resolve(hp, shape.parameters), sizes.task()
    if method.passes:
        return method.passes(shape.model, task, hp)
    steps, blocks = method.steps(shape.model, task, hp), shape.model.config.get_text_config().num_hidden_layers

    def counted(rows: Sequence[list[int]]) -> int:
        one, two = (steps / cut.steps * sum(map(sizes.passes, some)) for cut, some in zip(first, rows))
        return round(one + (blocks - 1) * (two - one))

    return first[0].once + counted([cut.forward for cut in first]), counted([cut.backward for cut in first])


def peak(method: Method, shape: Shape, sizes: Sizes, hp: Any, first: Sequence[Passes]) -> int:
    """Return the peak bytes that a run allocates in addition to the weights.

    Two microbatches of a batch show the peak, since the gradients of the first are kept while the second runs.
    """
    hp = method.resolve(hp, shape.parameters)
    whole, enough = sizes.forget, method.enough
    if first and (rows := first[0].forward):
        whole = sum(rows) if method.cumulative else max(rows)
        parts = sizes.passes(whole) if method.cumulative else 1
        enough = max(
            enough, first[0].once + 2 * min(2, sizes.passes(whole)) * -(-len(rows) // (first[0].steps * parts))
        )
    batch = min(whole, 2 * sizes.microbatch)
    small = sizes if method.cumulative else replace(sizes, forget=batch, retain=min(sizes.retain, batch))
    few = _at_most(method.at(hp, _largest(method, hp)), epochs=2, batch_size=batch, stop_loss=0.0)
    share = _largest(method, hp) if method.strength == "ratio" else 1.0
    all_rows, few_rows = (method.held_bytes(shape.model, each.task(), hp) for each in (sizes, small))
    of_other_rows = all_rows - few_rows
    return of_other_rows + shape.peak(lambda model: watched(method, model, small, few, enough), share)


@dataclass
class Passes:
    """The passes of a run, each given by its number of sequences.

    steps   number of steps
    once    forward passes before the first step, counted separately
    """

    forward: list[int] = dataclasses.field(default_factory=list)
    backward: list[int] = dataclasses.field(default_factory=list)
    steps: int = 1
    once: int = 0


class _Enough(Exception):
    """Signal that the run has made enough passes."""


def watched(
    method: Method,
    model,
    sizes: Sizes,
    hp: Any,
    enough: int | None = None,
    on_edit: Callable[[Passes], object] = lambda found: None,
) -> Passes:
    """Run a method on zeros, until it ends or has made `enough` forward passes. Return the passes.

    on_edit: called with the passes so far whenever the method yields the edit of a strength.

    A backward pass is counted at the last block that it reaches: a loss may skip the blocks after the one it reads.
    """
    found, last_reached = Passes(), dict[int, int]()  # number of the forward pass -> block

    def before(module, inputs) -> None:
        if len(found.forward) == enough:
            raise _Enough

    def after(block: int, module, inputs, output) -> None:
        hidden, number = output[0] if isinstance(output, tuple) else output, len(found.forward)
        if block == len(blocks) - 1:
            found.forward.append(len(hidden))
        if hidden.requires_grad:
            hidden.register_hook(partial(reached, number, block))

    def reached(number: int, block: int, gradient: torch.Tensor) -> None:
        if last_reached.setdefault(number, block) == block:
            found.backward.append(len(gradient))

    blocks = find_blocks(model)[1]  # not the model, which is not called if the output layer runs in chunks
    hooks = [blocks[0].register_forward_pre_hook(before)]
    hooks += [block.register_forward_hook(partial(after, place)) for place, block in enumerate(blocks)]
    try:
        for _ in method.run(model, sizes.task(), hp):
            on_edit(found)
    except _Enough:
        pass
    except (Exception, SystemExit) as error:
        if not method.code or isinstance(error, (UserError, *FAILURES)):
            raise
        raise RuntimeError(f"{method.name}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _first_steps(method: Method, shape: Shape, sizes: Sizes, hp: Any) -> Passes:
    """Return the passes of as few of a method's first steps as possible.

    A microbatch is assumed to hold any batch. Objectives are an exception: they divide a microbatch among their sides
    and run the unedited model on whole sets.
    """
    hp = _at_most(hp, epochs=1, stop_loss=0.0, layer=len(shape.mlps) - 1)
    batch = getattr(hp, "batch_size", None) or max(sizes.forget, sizes.retain)
    forget, retain = min(sizes.forget, batch), min(sizes.retain, batch)
    small = replace(sizes, forget=forget, retain=retain, length=2, prompt=1)

    if method.cumulative:
        ends: list[tuple[int, int]] = []  # forward and backward passes up to the end of each step

        def end(found: Passes) -> None:
            ends.append((len(found.forward), len(found.backward)))

        found = shape.run(lambda model: watched(method, model, sizes, method.at(hp, 1, 2), on_edit=end))
        forward, backward = ends[0] if ends else (0, 0)
        step = Passes(found.forward[forward:], found.backward[backward:])
        return replace(step, once=forward - len(step.forward))
    strength = 1 / shape.parameters if method.nested else _largest(method, hp)
    sized = replace(small, microbatch=sizes.forget + sizes.retain)
    found = shape.run(lambda model: watched(method, model, sized, method.at(hp, strength)))
    return replace(found, steps=method.steps(shape.model, small.task(), method.at(hp, strength)))


def _largest(method: Method, hp: Any) -> Any:
    """Return the largest of a method's strengths that changes anything, or None."""
    strengths = getattr(hp, method.strength or "", ())
    return max((value for value in strengths if value != method.idle), default=method.idle)


def _at_most(hp: Any, **most: Any) -> Any:
    """Return the settings with these upper limits; limits that name no setting are ignored."""
    set_to = {field.name: getattr(hp, field.name) for field in dataclasses.fields(hp)}
    limited = {name: value for name, value in most.items() if set_to.get(name) is not None}
    return replace(hp, **{name: min(set_to[name], value) for name, value in limited.items()})


def check_fits(
    method: Method,
    hp: Any,
    shape: Shape,
    sizes: Sizes,
    planned: Plan,
    device: str | torch.device,
    device_map: str | None = None,
    processes: int = 1,
    beside: int = 0,
) -> None:
    """Raise OutOfMemory if a plan exceeds free memory. The message says how much is missing and which flags help.

    processes: number of processes with such a plan at the same time; on a CPU they share its memory. beside: bytes that
    each of them holds for another model, the never-planted twin.
    """
    room = (1 - RESERVE) * free_bytes(device, device_map) / (processes if torch.device(device).type == "cpu" else 1)
    room -= beside
    missing = planned.peak - room
    if missing <= 0:
        return
    first, ways = first_steps(method, shape, sizes, hp), _ways(method, hp, shape, sizes, planned)

    def enough(flags: Sequence[str]) -> bool:
        changed = (shape, sizes, hp)
        for flag in flags:
            changed = ways[flag](*changed)
        return changed[0].weight_bytes + peak(method, *changed, first) <= room

    if alone := [flag for flag in ways if enough([flag])]:
        advice = f"{' or '.join(alone)} helps"
    elif len(ways) > 1 and enough(list(ways)):
        advice = f"{', '.join(ways)} together help"
    else:
        advice = "use --device_map auto over several GPUs, a smaller model or a larger machine"
    raise OutOfMemory(
        f"{method.name}: takes {planned.peak / GB:.1f} GB at its peak, {missing / GB:.1f} GB more than is free; "
        f"{advice}"
    )


def _ways(method: Method, hp: Any, shape: Shape, sizes: Sizes, planned: Plan) -> dict[str, Callable]:
    """Return the flags that may save memory, each with a function that changes (shape, sizes, hp) accordingly."""
    ways: dict[str, Callable] = {}
    if sizes.microbatch > 1:
        ways["--microbatch 1"] = lambda shape, sizes, hp: (shape, replace(sizes, microbatch=1), hp)
    if planned.backward and not sizes.gradient_checkpointing:
        ways["--gradient_checkpointing"] = lambda shape, sizes, hp: (
            shape, replace(sizes, gradient_checkpointing=True), hp,
        )  # fmt: skip
    if shape.model.dtype == torch.float32:
        ways["--dtype bfloat16"] = lambda shape, sizes, hp: (
            shape_of(shape.model.config, torch.bfloat16, shape.device), sizes, hp,
        )  # fmt: skip
    if getattr(method.resolve(hp, shape.parameters), "momentum", None):
        ways["--momentum 0"] = lambda shape, sizes, hp: (shape, sizes, replace(hp, momentum=0.0))
    return ways
