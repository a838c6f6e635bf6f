"""Attack a model in its present state, edited or not, and measure what comes back."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import torch

from tinymem.data.dataset import Artifacts
from tinymem.data.memories import among
from tinymem.errors import Failures, UserError
from tinymem.localize.method import Change, ConfiguredMethods, Method, Strength, edits
from tinymem.localize.subject import UNCHANGED, AttackConditions, Run, Subject
from tinymem.localize.task import UnlearningTask, without_judging_sets
from tinymem.metrics.elicitation import Elicitation
from tinymem.models.adapter import weight_of
from tinymem.models.edit import Draws, describe
from tinymem.models.output_filter import unfiltered
from tinymem.records.cost import Cost
from tinymem.records.identity import AS_PUBLISHED, ATTACK, NEVER_PLANTED, TWIN_ATTACK, UNEDITED

Original = Callable[[str], "torch.Tensor"]  # a weight before the edit by its state-dict key


def attack(
    run: Run, attacks: ConfiguredMethods, force: bool = False, original: Original | None = None
) -> Iterator[dict]:
    """Attack the subject's model in its present state, which `run` describes; yield the records.

    original: the weights before the edit; None: the present ones. Raise NotFinite, after all attacks, if one of them
    leads to logits that are not finite: it gets no record.
    """
    failures = Failures()
    task = replace(run.subject.task, cache=None, original=original)
    for method, hp in attacks:
        yield from _attack(run, method, hp, task, force, failures)
    failures.end()


def attack_original(subject: Subject, attacks: ConfiguredMethods, force: bool = False) -> Iterator[dict[str, Any]]:
    """Attack the subject's unedited model; yield the records."""
    subject.prepare()
    return attack(Run(subject, {"kind": UNEDITED, **subject.identity}), attacks, force)


def attack_twin(subject: Subject, attacks: ConfiguredMethods, force: bool = False) -> Iterator[dict[str, Any]]:
    """Attack the subject's never-planted twin, with the same budgets; yield the records, none without a twin."""
    if subject.references is None or subject.references.open_twin is None:
        return iter(())
    run = Run(subject, {"kind": NEVER_PLANTED, **subject.identity})
    if not force and not attacks_left(run, attacks):
        return (attacked.finished for attacked in attacked_runs(run, attacks))
    subject.prepare()
    twin = subject.references.twin(subject.task.microbatch)
    assert twin is not None  # it can be opened
    run = replace(run, subject=replace(subject, model=twin.model))
    return attack(run, attacks, force, lambda name: weight_of(subject.model, name).parameter.detach())


def attacked_runs(run: Run, attacks: ConfiguredMethods) -> list[Run]:
    """Return the runs of all attacks on a run, at all their strengths."""
    return [_attacked_run(run, method, hp, value) for method, hp in attacks for value in method.strengths(hp)]


def attacks_left(run: Run, attacks: ConfiguredMethods) -> bool:
    """Return whether an attack on a run is still to be done."""
    return not all(attacked.is_done for attacked in attacked_runs(run, attacks))


def _attack(
    run: Run, method: Method, hp: Any, task: UnlearningTask, force: bool, failures: Failures
) -> Iterator[dict[str, Any]]:
    """Run one attack at all its strengths; yield their records. A strength that fails does not affect the others."""
    runs = {value: _attacked_run(run, method, hp, value) for value in method.strengths(hp)}
    to_do = [value for value, attacked in runs.items() if force or not attacked.is_done]
    if to_do:
        model, seen = run.subject.model, seen_by(method, task, hp)
        if force:
            for attacked in runs.values():
                attacked.forget()
        search = edits(method, model, without_judging_sets(task), method.at(hp, *to_do))
        # An output filter is not in the weights, so only attacks on prompts face it.
        access = nullcontext() if method.elicits else unfiltered(model)
        with failures.kept(f"attack {method.name}"), access, closing(search) as found:  # restores after an error too
            for (change, cost), value in zip(found, to_do):
                at = f" with --{method.name}.{method.strength} {value}" if method.strength else ""
                with failures.kept(f"attack {method.name}{at}"):
                    _complete(runs[value], change, cost, seen, force)
    yield from (attacked.finished for attacked in runs.values() if attacked.is_done)


def _complete(attacked: Run, change: Change, cost: Cost, seen: Artifacts | None, force: bool) -> None:
    """Measure the model under an attack and write the record. seen: the attacker's sequences, or None."""
    if isinstance(change, Elicitation):
        return attacked.complete(UNCHANGED, cost, force, attack=AttackConditions(seen, change))
    edits = change.edits if isinstance(change, Draws) else (change,)
    extents = [describe(attacked.subject.model, edit) for edit in edits]
    extent = {name: statistics.fmean(extent[name] for extent in extents) for name in extents[0]}
    attacked.complete(extent, cost, force, edits, AttackConditions(seen))


def seen_by(method: Method, task: UnlearningTask, hp: Any) -> Artifacts | None:
    """Return the sequences that an attack sees, None for none. Raise UserError if they leave nothing to measure."""
    if method.seen is None:
        return None
    flags = method.seen(without_judging_sets(task), hp)
    if flags.dtype != torch.bool or flags.shape != (len(task.forget),):
        raise UserError(f"--attack {method.name}: `seen` must give one bool for each of {len(task.forget)} sequences")
    seen, shown = task.forget.select(flags), task.forget if task.shown is None else task.shown
    if not len(task.held_out) and among(shown.planted, seen.planted).all():
        raise UserError(
            f"--attack {method.name}: sees all {len(shown)} sequences to forget, which leaves none to measure; give it "
            f"a smaller --{method.name}.share, or hold some out (--holdout_fraction)"
        )
    return seen


def _attacked_run(run: Run, method: Method, hp: Any, strength: Strength) -> Run:
    sections = {name: section for name, section in run.identity.items() if name not in ("kind", "parent")}
    kind = {NEVER_PLANTED: TWIN_ATTACK, AS_PUBLISHED: AS_PUBLISHED}.get(run.identity["kind"], ATTACK)
    about = {"kind": kind, "parent": run.digest, **sections, "attack": method.settings(hp, strength)}
    return Run(run.subject.attacked(method.elicits, method.measures), about)
