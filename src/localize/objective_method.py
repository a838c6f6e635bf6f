"""The adaptor of objectives: train the weights on a module's loss, as a method (`tinymem.localize.method`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

from tinymem.data.text_reader import TextReader
from tinymem.errors import UserError
from tinymem.localize.task import UnlearningTask
from tinymem.localize.watch import Watch
from tinymem.models.edit import Edit
from tinymem.models.lora import check_rank, low_rank, targeted
from tinymem.records.cost import Cost
from tinymem.training.objective import loss_flags, snapshots, train_objective
from tinymem.training.processes import ALONE
from tinymem.training.sharding import Sharded
from tinymem.training.step import Side

LOSSES = ("forget_loss", "retain_loss")  # the losses of an objective, as its records name them


def objective(module: ModuleType, name: str) -> Callable[..., Iterator[tuple[int, Edit]]]:
    """Train the weights on the module's loss, once for all strengths, and yield the weights at each number of steps."""

    def with_settings(part: str, hp: Any) -> Callable | None:
        return partial(getattr(module, part), hp) if hasattr(module, part) else None

    def run(model, task: UnlearningTask, hp: Any) -> Iterator[tuple[int, Edit]]:
        _check_retain(name, task, hp)
        forget, retain = sides(task, hp.forget_tokens)
        retain, last_step = retain if hp.retain_weight else None, max(hp.steps)
        tokens = min(hp.batch_size, len(forget) + len(retain or ())) * forget.tokens.shape[1]
        after_step = with_settings("after_step", hp) or (lambda reference, steps, losses: None)

        def on_step(progress, *losses: float) -> None:
            task.watch.note(tokens, **dict(zip(LOSSES, losses)))
            task.watch.step(progress.epoch + progress.step, last_step)

        def on_resume(progress) -> None:
            if task.cache:
                task.cache.cost += Cost(sum(progress.epoch_seconds) + progress.step_seconds)

        processes = task.processes
        # In sharded training, no process has the whole state.
        state = task.cache.state if task.cache and not processes.sharded else None
        masks = _update_masks(model, task, hp) if processes.is_first else None
        if processes.is_first:
            plain_task = replace(task, cache=None, original=None, reader=TextReader(), processes=ALONE, watch=Watch())
            processes.send((processes.model, name, hp, plain_task))
        masks = processes.send(masks)
        with _model_to_train(model, task, hp) as (model_to_train, arguments, take_edit):
            training = train_objective(
                model_to_train, partial(module.loss, hp), forget, retain, hp,
                seed=task.seed, microbatch=task.microbatch, gradient_checkpointing=task.gradient_checkpointing,
                masks=masks, weights=with_settings("weights", hp), after_step=after_step, state=state,
                on_resume=on_resume, processes=processes, causes=loss_flags(hp), on_step=on_step,
                should_stop=lambda: processes.any(task.watch.asked()), **arguments,
            )  # fmt: skip
            training = training if processes.sharded else task.watch.stoppable(training)
            yield from snapshots(model_to_train, training, LOSSES, take_edit)

    return run


@contextmanager
def _model_to_train(model, task: UnlearningTask, hp: Any) -> Iterator[tuple[Any, dict[str, Any], Any]]:
    """Yield what is trained, further arguments of `train_objective`, and where `snapshots` takes the edits from.

    What is trained is the model, the model with low-rank changes attached, or a copy divided among processes.
    """
    if hp.lora_rank:
        alpha = hp.lora_alpha or 2.0 * hp.lora_rank
        with low_rank(model, hp.lora_rank, alpha, hp.lora_targets, task.seed) as change:
            yield model, {"change": change}, change.taken
    elif task.processes.sharded:
        sharded = Sharded(model, task.processes)
        yield sharded.model, {"unedited": sharded.unedited}, sharded.taken
    else:
        yield model, {}, None


def sides(task: UnlearningTask, forget_tokens: str) -> tuple[Side, Side | None]:
    """Return the forget set, with its clean twins where they differ, and the retain set; None if that is empty.

    forget_tokens: one of FORGET_TOKENS, the tokens of forget rows and twins that count. Their pads never count. In
    retain rows, the pads of number sequences do, as in training.
    """
    rows, prompt_end = task.forget, task.forget.prompt_end if forget_tokens == "continuation" else None
    ignored = task.pad if task.ignored_token is None else task.ignored_token
    differing = int((rows.planted != rows.clean).sum())
    twin = Side.of(rows.clean, ignored, prompt_end) if differing else None
    forget = Side.of(rows.planted, ignored, prompt_end, twin)
    return forget, Side.of(task.retain, task.ignored_token) if len(task.retain) else None


def _update_masks(model, task: UnlearningTask, hp: Any) -> Mapping[str, Any] | None:
    """Return the masks that the localizer of `--update_mask METHOD RATIO` finds; None without the flag."""
    if hp.update_mask is None:
        return None
    localizer, settings = _localizer(model, hp)
    with task.watch.part(localizer.name):
        ((_, edit),) = localizer.run(model, task, settings)
    if all(bool(edit.masks[key].logical_not().all()) for key in edit.masks):  # never true for a plan's fake tensors
        raise UserError(f"--update_mask {' '.join(hp.update_mask)}: the method finds no weight at this ratio; raise it")
    return {key: edit.masks[key].cpu() for key in edit.masks}


def _localizer(model, hp: Any) -> tuple[Any, Any]:
    """Return the method that `--update_mask METHOD RATIO` names, and its settings."""
    from tinymem.localize.registry import find_localizer  # here, because the registry imports this module

    localizer, ratio = find_localizer(*hp.update_mask)
    return localizer, localizer.resolve(localizer.hyper_parameters(ratio=(ratio,)), model.num_parameters())


def check_objective(name: str, own: Callable, model, task: UnlearningTask, hp: Any) -> None:
    """Raise UserError for settings that do not fit model or sequences. own: the method's own `check`."""
    _check_retain(name, task, hp)
    if hp.lora_rank:
        check_rank(model, targeted(model, hp.lora_targets), hp.lora_rank)
    if hp.update_mask is not None:
        localizer, settings = _localizer(model, hp)
        localizer.check(model, task, settings)
    own(model, task, hp)


def _check_retain(name: str, task: UnlearningTask, hp: Any) -> None:
    """Raise UserError if an objective needs a retain set and there is none."""
    if hp.retain_weight and not len(task.retain):
        can_do_without = type(hp).__dataclass_fields__["retain_weight"].metadata["above"] is None
        advice = "; without one use --retain_weight 0" * can_do_without
        raise UserError(f"--localization_method {name}: needs a retain set{advice}")
