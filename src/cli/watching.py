"""Show and log what methods and attacks do while they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tinymem.cli.display import Display, Meter
from tinymem.cli.log import Log
from tinymem.localize.method import Method
from tinymem.localize.subject import Subject
from tinymem.localize.unlearn import run_identity
from tinymem.localize.watch import Watch
from tinymem.records.identity import record_digest
from tinymem.records.strength import strength_in
from tinymem.records.table import flat_row, method_of, spelled_attack


class Watching:
    """The loop of a method within the display of its runs, and the log of both."""

    def __init__(self, subject: Subject, display: Display, log: Log) -> None:
        self._display, self._log = display, log
        self._watch = Watch(self._on_step)
        self.subject = replace(subject, task=replace(subject.task, watch=self._watch))
        self._method: Method | None = None  # the one whose steps are logged
        self._hp: Any = None
        self._run = ""

    def begin(self, method: Method, hp: Any) -> None:
        """Note that a method begins. hp: resolved, with the strengths to find."""
        self._method, self._hp = method, hp

    def _on_step(self, step: int, steps: int, tokens: int, losses: Mapping[str, Any]) -> None:
        watch, inner = self._watch, self._display.inner
        what = watch.method if watch.strength is None else f"{watch.method} {watch.strength:g}"
        if inner is None or inner.what != what or step <= inner.done:
            inner = self._display.inner = Meter(what, steps, done=step - 1)
            self._run = self._digest()
        inner.to(step, tokens, **losses)
        self._display.refresh()
        if self._run:
            self._log.step(self._run, inner, last=step == steps)

    def _digest(self) -> str:
        """Return the digest of the record that the present loop leads to, the last one of several; "" for an attack."""
        method, strength = self._method, self._watch.strength
        if method is None or method.name != self._watch.method:
            return ""
        last = method.strengths(self._hp)[-1] if strength is None else strength
        return record_digest(run_identity(self.subject, method, self._hp, last))

    def record(self, record: Mapping[str, Any]) -> None:
        """Log what was measured of a model."""
        settings = record.get("method", {})
        strength, name = strength_in(settings), method_of(flat_row(record))
        what = " ".join([name, *([f"{strength[1]:g}"] if strength else [])])
        what += f" {spelled_attack(record)}" if record.get("attack") else ""
        step = settings.get("steps", 0)
        about = {strength[0]: strength[1]} if strength else {}
        self._log.metrics(record_digest(record), what, step if isinstance(step, int) else 0, record["results"], **about)
