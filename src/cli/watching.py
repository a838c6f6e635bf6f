"""Show and log the progress of methods, attacks and measuring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tinymem.cli.display import Display, Meter
from tinymem.cli.log import Log
from tinymem.interrupts import interruptible
from tinymem.localize.method import Method
from tinymem.localize.subject import Subject
from tinymem.localize.unlearn import run_identity
from tinymem.localize.watch import Watch
from tinymem.metrics.probe import OnRows
from tinymem.records.identity import record_digest
from tinymem.records.strength import strength_in, with_strength
from tinymem.records.table import flat_row, method_of, spelled_attack


class Watching:
    """The display and log of a method's loop, within the display of all runs."""

    def __init__(self, subject: Subject, display: Display, log: Log) -> None:
        self._display, self._log = display, log
        self._watch = Watch(self._on_step, interruptible)
        self.subject = replace(subject, task=replace(subject.task, watch=self._watch), on_rows=self._on_rows)
        self._method: Method | None = None  # the method whose steps are logged
        self._hp: Any = None
        self._run = self._measured = ""

    def begin(self, method: Method, hp: Any) -> None:
        """Note that a method begins. hp: its resolved hyper-parameters, with all strengths."""
        self._method, self._hp = method, hp

    def _on_step(self, step: int, steps: int, tokens: int, losses: Mapping[str, Any]) -> None:
        watch, inner = self._watch, self._display.inner
        what = watch.method if watch.strength is None else f"{watch.method} {watch.strength:g}"
        if inner is None or inner.what != what or step <= inner.done:
            inner = self._display.inner = Meter(what, steps, done=step)
            # the time of the first step is unknown: speeds are those of later ones
            self._run, tokens = self._digest(), 0
        inner.to(step, tokens, **losses)
        self._display.refresh()
        if self._run:
            self._log.step(self._run, inner, last=step == steps)

    def _digest(self) -> str:
        """Return the digest of the record that the current loop produces, the last if several; "" for an attack."""
        method, strength = self._method, self._watch.strength
        if method is None or method.name != self._watch.method:
            return ""
        last = method.strengths(self._hp)[-1] if strength is None else strength
        return record_digest(run_identity(self.subject, method, self._hp, last))

    def _on_rows(self, identity: Mapping[str, Any], what: str, done: int, total: int) -> None:
        if not done:
            self._run, self._measured = record_digest(identity), run_name(identity)
        meter = self._display.rows(f"{self._measured} on {what}", done, total)
        self._log.rows(self._run, self._measured, what, meter)

    def record(self, record: Mapping[str, Any]) -> None:
        """Log the results in a record."""
        settings, what = record.get("method", {}), run_name(record)
        strength = strength_in(settings)
        step = settings.get("steps", 0)
        about = {strength[0]: strength[1]} if strength else {}
        self._log.metrics(record_digest(record), what, step if isinstance(step, int) else 0, record["results"], **about)


@contextmanager
def watched(subject: Subject, log: Log | None = None) -> Iterator[Watching]:
    """Show and log the progress of measuring and attacks. Short ones show nothing."""
    with Display("measuring", quiet=True) as display:
        yield Watching(subject, display, log or Log())


@contextmanager
def looking() -> Iterator[OnRows]:
    """Yield a callback that shows the progress of the search for memorized sequences. A short search shows nothing."""
    with Display("finding what is memorized", quiet=True) as display:
        yield display.rows


def run_name(identity: Mapping[str, Any]) -> str:
    """Return the name of a run: its method, strength and attack."""
    words = with_strength(method_of(flat_row(identity)), identity.get("method", {}))
    return " ".join([words, *([spelled_attack(identity)] if identity.get("attack") else [])])
