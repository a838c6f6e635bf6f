"""How the study's code unlearns where it differs from the library: switches that as_published.py puts in one at a time.

A switch changes the forget or retain set, a setting of the method, or one of the library's functions for the time of a
run. The library itself has none of the last kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch  # sets an attribute and puts the old one back, also after an error

import published_obs
import torch

from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.errors import UserError
from tinymem.localize.neuron import gates, hard_concrete, slimming
from tinymem.localize.task import ALL, TEST, TaskSettings, UnlearningTask, unlearning_task
from tinymem.localize.weight import edge_popup, obs, subnet
from tinymem.models.trainable import gradient_of

FIRST_WINDOW = 50  # where the window starts until a sequence was counted


@dataclass(frozen=True)
class Difference:
    """What the study's code does otherwise.

    methods    those it changes
    backdoor   whether it is of backdoors only
    settings   of the method, as the study's code has them
    task       settings of the forget and retain set
    """

    meaning: str
    methods: tuple[str, ...]
    backdoor: bool = False
    settings: Mapping[str, Any] | None = None
    task: Mapping[str, Any] | None = None


MIXED, SUBNETS, GATES = ("balanced_subnet", "greedy"), ("balanced_subnet", "subnet"), ("slimming", "hard_concrete")
METHODS = (*SUBNETS, *GATES, "greedy", "obs", "activations", "integrated_gradients", "durable", "durable_agg")
DIFFERENCES = {
    "mixture": Difference(
        "batches of forget and retain set as they are mixed, most of them without a sequence to forget",
        MIXED, settings={"unlearn_share": 0.0},
    ),
    "test_triggers": Difference(
        "what is forgotten are the memorized test triggers that the study's code counts, not the training rows",
        METHODS, backdoor=True, task={"forget": TEST},
    ),
    "planted_retained": Difference(
        "planted training rows stay in the retain set, those that are to be forgotten too",
        MIXED, task={"retain": ALL},
    ),
    "batch_64": Difference(
        "batches of 64, whatever batch size is stated", (*SUBNETS, "greedy"), settings={"batch_size": 64}
    ),
    "scores_as_stored": Difference(
        "initial scores scaled by the matrix as GPT-2 stores it, transposed: by its outputs, not its inputs", SUBNETS
    ),
    "in_order": Difference(
        "the forget set is not shuffled, and the last batch of each pass is what is left of it", ("subnet", *GATES)
    ),
    "one_zero_grad": Difference("gradients are zeroed once an epoch, so that they pile up over its steps", GATES),
    "no_stop": Difference("the test that is to stop the training does not stop it", GATES, settings={"stop_loss": 0.0}),
    "piled_gradients": Difference(
        "gradients of batches of 64, none ever zeroed, so that they pile up over passes and over parameters", ("obs",)
    ),
    "float32_fisher": Difference(
        "the inverse Fisher matrix is kept in float32; where it ends without numbers, weights are dropped first",
        ("obs",),
    ),
}  # fmt: skip


def counted_as_published(dataset: MemorizationDataset, artifacts: Artifacts) -> torch.Tensor:
    """Return which backdoored sequences the study's code counts, bool (A,): each by the window of the last one counted.

    One that is left out leaves the window where it was. In the study's order of the triggers exactly as many count as
    the published percentages rest on.
    """
    counted, start = torch.zeros(len(artifacts), dtype=torch.bool), FIRST_WINDOW
    for row, prompt_end in enumerate(artifacts.prompt_end.tolist()):
        one = replace(artifacts.select(torch.tensor([row])), prompt_end=torch.tensor([start]))
        if dataset.measured(one).item():
            counted[row], start = True, prompt_end
    return counted


def applicable(method: str, artifact: str) -> list[str]:
    """Return the differences that a method has on data of this kind, in order. Raise UserError for another method."""
    if method not in METHODS:
        raise UserError(f"--method {method}: must be one of {', '.join(METHODS)}")
    backdoor = artifact == "backdoor"
    return [name for name, each in DIFFERENCES.items() if method in each.methods and (backdoor or not each.backdoor)]


def chosen(names: Sequence[str], method: str, artifact: str) -> tuple[str, ...]:
    """Return differences by name, `all` or `none`, in order. Raise UserError for one that the method does not have."""
    known = applicable(method, artifact)
    for name in names:
        if name in ("all", "none") and len(names) > 1:
            raise UserError(f"--differences {' '.join(names)}: {name} stands alone")
        if name not in (*known, "all", "none"):
            allowed = ", ".join([*known, "all", "none"])
            raise UserError(f"--differences {name}: {method} on {artifact} data has {allowed}")
    return tuple(known if "all" in names else [name for name in known if name in names])


def study(method: str, artifact: str) -> list[tuple[str, ...]]:
    """Return sets of differences without repeats: none and all, each one alone, all but each one."""
    known = applicable(method, artifact)
    alone = [(name,) for name in known]
    others = [tuple(other for other in known if other != name) for name in known]
    return list(dict.fromkeys([(), tuple(known), *alone, *others]))


def task_settings(settings: TaskSettings, names: Collection[str]) -> TaskSettings:
    """Return the settings of the forget and retain set with these differences."""
    return replace(settings, **{name: value for one in names for name, value in (DIFFERENCES[one].task or {}).items()})


def make_task(model, dataset: MemorizationDataset, settings: TaskSettings, names: Collection[str]) -> UnlearningTask:
    """Return the task with these differences. Raise UserError where nothing is memorized, thus nothing to forget."""
    if "test_triggers" in names:
        counted = counted_as_published(dataset, dataset.test_artifacts)
        dataset = replace(dataset, test_artifacts=dataset.test_artifacts.select(counted))
    task = unlearning_task(model, dataset, task_settings(settings, names))
    if not len(task.forget):
        what = "test triggers that count" if "test_triggers" in names else "planted rows"
        raise UserError(
            f"--model_path {model.name_or_path}: has memorized none of the {what}; there is nothing to forget"
        )
    return task


def with_differences(hp: Any, names: Collection[str]) -> Any:
    """Return a method's settings with these differences."""
    changes = {name: value for one in names for name, value in (DIFFERENCES[one].settings or {}).items()}
    return replace(hp, **changes)


@contextmanager
def as_published(names: Collection[str]) -> Iterator[None]:
    """Let the library's methods work with these differences within the block.

    After a block without an error, every difference that replaces a function of the library must have been used.
    """
    dtype = torch.float32 if "float32_fisher" in names else torch.float64
    score = Replacement(partial(published_obs.score, piled="piled_gradients" in names, dtype=dtype))
    batches, gate_learning = Replacement(batches_in_order), Replacement(learn_gates_piling_up)
    replacements: dict[str, tuple[tuple[Any, str, Replacement], ...]] = {
        "scores_as_stored": ((edge_popup, "new_scores", Replacement(scores_as_stored)),),
        "in_order": tuple((module, "unlearn_batches", batches) for module in (subnet, gates)),
        "one_zero_grad": tuple((module, "learn_gates", gate_learning) for module in (slimming, hard_concrete)),
        "piled_gradients": ((obs, "score", score),),
        "float32_fisher": ((obs, "score", score),),
    }
    with ExitStack() as changes:
        for name in names:
            for module, function, replacement in replacements.get(name, ()):
                changes.enter_context(patch.object(module, function, replacement))
        yield
    for name in names:
        called = [replacement.was_called for *_, replacement in replacements.get(name, ())]
        assert any(called) or not called, f"{name}: the library no longer calls the function that this replaces"


class Replacement:
    """A function in place of one of the library's, which notes whether it was called."""

    def __init__(self, function: Callable) -> None:
        self.function, self.was_called = function, False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.was_called = True
        return self.function(*arguments, **options)


_new_scores, _learn_gates = edge_popup.new_scores, gates.learn_gates


def scores_as_stored(matrix, *arguments: Any) -> Any:
    """Return a matrix's new scores, with the bound 1 / sqrt(second dimension of the tensor as it is stored)."""
    scored = _new_scores(matrix, *arguments)
    scored.score.mul_(math.sqrt(matrix.view().shape[1] / matrix.parameter.shape[1]))
    return scored


def batches_in_order(
    task: UnlearningTask, size: int, epochs: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield the forget set's batches in its order, the same ones in every epoch; the last one may be smaller."""
    for _ in range(epochs):
        yield from task.forget.planted.split(size)


def learn_gates_piling_up(model, task: UnlearningTask, mlps, parameters: list[torch.Tensor], *others: Any) -> None:
    """Learn gates as the library does, with each step's gradients added to those of the epoch's steps before it."""
    *_, hp, _ = others
    steps = -(-len(task.forget) // hp.batch_size)
    hooks = [each.register_post_accumulate_grad_hook(_Pile(steps)) for each in parameters]
    try:
        _learn_gates(model, task, mlps, parameters, *others)
    finally:
        for hook in hooks:
            hook.remove()


class _Pile:
    """Adds up a parameter's gradients over the steps of an epoch. steps: of an epoch."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.total = steps, 0, torch.zeros(())

    def __call__(self, parameter: torch.Tensor) -> None:
        gradient = gradient_of(parameter)
        if self.done % self.steps:
            gradient.add_(self.total)
        self.total, self.done = gradient.clone(), self.done + 1
