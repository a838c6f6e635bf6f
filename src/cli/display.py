"""How far a long loop is: a bar on a terminal, elsewhere a line at the start, one a minute and one at the end.

What is mostly short, such as measuring, is quiet: a bar that comes late and goes again, or only the line a minute.

A loop tells a `Display` where it is after every step. That costs a read of the clock: losses, which may be tensors on a
GPU, are read only when something is written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

LINE_SECONDS = 60.0  # between two lines where stderr is no terminal
BAR_SECONDS = 0.1  # between two drawings of a bar
SPEED_SECONDS = 1.0  # the shortest time that a shown speed is a mean of
QUIET_SECONDS = 1.0  # until the bar of a quiet loop comes


class Meter:
    """The position of a loop.

    what, unit    its name, and what is counted
    total         number of units; None where it is not known
    begun, done   units at the start and now: a resumed loop does not start at 0
    tokens        tokens processed since the start
    losses, note  the latest ones; a note is a few words
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "step", done: int = 0) -> None:
        self.what, self.total, self.unit, self.begun, self.done = what, total, unit, done, done
        self.tokens, self.note = 0, ""
        self.losses: Mapping[str, Any] = {}
        self.started = time.monotonic()
        self._mark, self._speed = (self.started, 0), 0.0

    def to(self, done: int, tokens: int = 0, note: str | None = None, **losses: Any) -> None:
        """Move on. done: units in all; tokens: those since the last call; note: None keeps the last one."""
        self.done, self.tokens = done, self.tokens + tokens
        self.note = self.note if note is None else note
        self.losses = losses

    def speed(self) -> float:
        """Return tokens per second since this was last asked for, or a second ago at least; 0 where none are counted."""
        seconds = time.monotonic() - self._mark[0]
        if seconds > SPEED_SECONDS or not self._speed:
            self._speed = (self.tokens - self._mark[1]) / max(seconds, 1e-9)
            self._mark = (time.monotonic(), self.tokens)
        return self._speed

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """The seconds that the rest takes at the mean speed so far; None while that is unknown."""
        if self.total is None or self.done <= self.begun:
            return None
        return self.seconds / (self.done - self.begun) * max(0, self.total - self.done)

    def place(self) -> str:
        """Return the position, such as "step 120 of 900"."""
        return f"{self.unit} {self.done:,}" + (f" of {self.total:,}" if self.total is not None else "")

    def facts(self, speed: float) -> list[str]:
        """Return the note, the losses and a speed in words."""
        losses = [f"{name.replace('_', ' ')} {float(value):.4f}" for name, value in self.losses.items()]
        return [*([self.note] if self.note else []), *losses, *([f"{speed:,.0f} tokens/s"] if speed else [])]


class Display:
    """A loop's progress on stderr; use it as a context manager. Whether it ended well decides about the last line.

    inner: a loop within the present unit, shown behind it; in the place of the loop itself where `quiet`.
    quiet: say nothing at the start and at the end, and nothing at all of what is short.
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "step", done: int = 0, quiet: bool = False
    ) -> None:
        self.meter = Meter(what, total, unit, done)
        self.quiet = quiet
        self.inner: Meter | None = None
        self._on_terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._next = 0.0  # the time of the next drawing or line

    @property
    def on_terminal(self) -> bool:
        """Whether this is a bar."""
        return self._on_terminal

    def __enter__(self) -> Display:
        if self.quiet:
            self._next = time.monotonic() + (QUIET_SECONDS if self._on_terminal else LINE_SECONDS)
        elif self._on_terminal:
            self._open_bar()
        elif self.meter.total != 0:
            self.write(f"{self.meter.what}: {self.meter.place()}")
            self._next = time.monotonic() + LINE_SECONDS
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self.close()
        elif kind is None and self.meter.total != 0 and not self.quiet:
            facts = self.meter.facts(self.meter.tokens / max(self.meter.seconds, 1e-9))
            self.write(
                f"{self.meter.what}: {', '.join([self.meter.place(), *facts])}, {spelled(self.meter.seconds)} in all"
            )

    def close(self) -> None:
        """End the bar, if there is one: what is written now comes below it."""
        if self._bar is not None:
            self._draw()
            self._bar.close()

    def to(self, done: int, tokens: int = 0, note: str | None = None, **losses: Any) -> None:
        """Move on, as `Meter.to`, and show it if it is time."""
        self.meter.to(done, tokens, note, **losses)
        self.refresh()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move on by some units; the loop within the last one is over."""
        self.inner = None
        self.to(self.meter.done + count, note=note)

    def rows(self, what: str, done: int, total: int) -> Meter:
        """Show how far a pass over rows is, within the present unit; it begins with 0 `done`. Return its meter."""
        if not done or self.inner is None:
            self.inner = Meter(what, total, "row")
        self.inner.to(done)
        self.refresh()
        return self.inner

    def refresh(self) -> None:
        """Show the present position if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (BAR_SECONDS if self._on_terminal else LINE_SECONDS)
        if self._on_terminal:
            self._draw()
        elif self.meter.total != 0:
            self.write(self._line())

    def write(self, text: str) -> None:
        """Write a line on stderr, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _open_bar(self) -> None:
        from tqdm import tqdm

        settings = dict(total=self.meter.total, initial=self.meter.done, unit=self.meter.unit, leave=not self.quiet)
        self._bar = tqdm(dynamic_ncols=True, file=sys.stderr, **settings)

    def _draw(self) -> None:
        if self._bar is None:
            self._open_bar()
        if self.quiet and self.inner is not None:
            self._bar.total, self._bar.unit = self.inner.total, self.inner.unit
            self._bar.n, self._bar.start_t = self.inner.done, time.time() - self.inner.seconds
            self._bar.set_description_str(f"{self.meter.what} {self.inner.what}")
            return
        self._bar.set_postfix_str(", ".join(self._facts()), refresh=False)
        self._bar.update(self.meter.done - self._bar.n)

    def _line(self) -> str:
        left = (self.inner or self.meter).seconds_left
        place = [] if self.quiet else [self.meter.place()]
        parts = [*place, *self._facts(), *([] if left is None else [f"{spelled(left)} left"])]
        return f"{self.meter.what}: {', '.join(parts)}"

    def _facts(self) -> list[str]:
        if self.inner is not None:
            return [f"{self.inner.what} {self.inner.place()}", *self.inner.facts(self.inner.speed())]
        return self.meter.facts(self.meter.speed())


def spelled(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds, or minutes:seconds below an hour."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
