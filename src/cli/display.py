"""Progress of long loops: a bar on a terminal; elsewhere a line at the start, every minute and at the end.

Loops that are mostly short, such as measuring, are quiet: the bar appears late and is removed at the end, or only the
line every minute is written.

A loop reports its position to a `Display` after every step. This costs only a read of the clock: losses, which may be
tensors on a GPU, are read only when something is written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

LINE_SECONDS = 60.0  # between two lines when stderr is not a terminal
BAR_SECONDS = 0.1  # between two redraws of a bar
SPEED_SECONDS = 1.0  # the shortest time over which a displayed speed is averaged
QUIET_SECONDS = 1.0  # until the bar of a quiet loop appears


class Meter:
    """The position of a loop.

    what, unit    its name, and what is counted
    total         number of units; None if unknown
    begun, done   units at the start and now: a resumed loop does not start at 0
    tokens        tokens processed since the start
    losses, note  the latest losses and note (a few words)
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "step", done: int = 0) -> None:
        self.what, self.total, self.unit, self.begun, self.done = what, total, unit, done, done
        self.tokens, self.note = 0, ""
        self.losses: Mapping[str, Any] = {}
        self.started = time.monotonic()
        self._mark, self._speed = (self.started, 0), 0.0

    def to(self, done: int, tokens: int = 0, note: str | None = None, **losses: Any) -> None:
        """Update the position. done: units so far; tokens: since the last call; note: None keeps the last note."""
        self.done, self.tokens = done, self.tokens + tokens
        self.note = self.note if note is None else note
        self.losses = losses

    def speed(self) -> float:
        """Return tokens per second, averaged over at least the last second; 0 if no tokens are counted."""
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
        """Estimated seconds left at the mean speed so far; None while that is unknown."""
        if self.total is None or self.done <= self.begun:
            return None
        return self.seconds / (self.done - self.begun) * max(0, self.total - self.done)

    def place(self) -> str:
        """Return the position, such as "step 120 of 900"."""
        return f"{self.unit} {self.done:,}" + (f" of {self.total:,}" if self.total is not None else "")

    def facts(self, speed: float) -> list[str]:
        """Return the note, the losses and a speed as texts."""
        losses = [f"{name.replace('_', ' ')} {float(value):.4f}" for name, value in self.losses.items()]
        return [*([self.note] if self.note else []), *losses, *([f"{speed:,.0f} tokens/s"] if speed else [])]


class Display:
    """A loop's progress on stderr, as a context manager. An error within the block suppresses the last line.

    inner: a loop within the current unit, shown after it, or in place of the loop itself if `quiet`.
    quiet: write nothing at the start and the end, and nothing at all for a short loop.
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "step", done: int = 0, quiet: bool = False
    ) -> None:
        self.meter = Meter(what, total, unit, done)
        self.quiet = quiet
        self.inner: Meter | None = None
        self._on_terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._next = 0.0  # the time of the next redraw or line

    @property
    def on_terminal(self) -> bool:
        """Whether progress is shown as a bar."""
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
                f"{self.meter.what}: {', '.join([self.meter.place(), *facts])}, {clock_time(self.meter.seconds)} in all"
            )

    def close(self) -> None:
        """Close the bar, if there is one. Later output comes below it."""
        if self._bar is not None:
            self._draw()
            self._bar.close()

    def to(self, done: int, tokens: int = 0, note: str | None = None, **losses: Any) -> None:
        """Update the position as `Meter.to` does, and show it if it is time."""
        self.meter.to(done, tokens, note, **losses)
        self.refresh()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Advance by some units. This ends the loop within the last unit."""
        self.inner = None
        self.to(self.meter.done + count, note=note)

    def rows(self, what: str, done: int, total: int) -> Meter:
        """Show the progress of a pass over rows within the current unit. `done` 0 begins a pass. Return its meter."""
        if not done or self.inner is None:
            self.inner = Meter(what, total, "row")
        self.inner.to(done)
        self.refresh()
        return self.inner

    def refresh(self) -> None:
        """Show the current position if it is time."""
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
        parts = [*place, *self._facts(), *([] if left is None else [f"{clock_time(left)} left"])]
        return f"{self.meter.what}: {', '.join(parts)}"

    def _facts(self) -> list[str]:
        if self.inner is not None:
            return [f"{self.inner.what} {self.inner.place()}", *self.inner.facts(self.inner.speed())]
        return self.meter.facts(self.meter.speed())


def clock_time(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds, or minutes:seconds below an hour."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
