"""What a method or an attack reports while it runs: steps done, the number of steps, and losses."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

Item = TypeVar("Item")
Asked = Callable[[], bool]
OnStep = Callable[[int, int, int, Mapping[str, Any]], None]  # step, steps, tokens since the last one, losses


def _silent(step: int, steps: int, tokens: int, losses: Mapping[str, Any]) -> None: ...


def _never() -> bool:
    return False


def _uninterrupted() -> AbstractContextManager[Asked]:
    return nullcontext(_never)


@dataclass
class Watch:
    """A watched loop.

    on_step    called after every step. Losses may be tensors on a device; reading one waits for the device
    interruptible   returns a context in which signals only ask to stop, as `tinymem.interrupts.interruptible`
    asked      whether a signal has asked, for training that can save its state; set within `stoppable`
    method, strength    what is running: the name of a method or attack, and its strength; None if one training run
               serves all strengths
    """

    on_step: OnStep = _silent
    interruptible: Callable[[], AbstractContextManager[Asked]] = _uninterrupted
    asked: Asked = _never
    method: str = ""
    strength: Any = None
    _tokens: int = 0
    _losses: dict[str, Any] = field(default_factory=dict)

    def note(self, tokens: int, **losses: Any) -> None:
        """Note the tokens and losses of a pass in the current step. losses: numbers, or scalars without a gradient."""
        self._tokens += tokens
        self._losses |= losses

    def step(self, step: int, steps: int) -> None:
        """Report that a step is done."""
        self.on_step(step, steps, self._tokens, self._losses)
        self._tokens, self._losses = 0, {}

    @contextmanager
    def part(self, method: str) -> Iterator[None]:
        """Let another method run within the block as part of the current one; its notes are dropped."""
        owner, self.method = self.method, method
        try:
            yield
        finally:
            self.method, self._tokens, self._losses = owner, 0, {}

    def stoppable(self, training: Generator[Item]) -> Generator[Item]:
        """Yield what a training run yields. It can be asked to stop while it works, not between two items."""
        with closing(training):
            while True:
                with self.interruptible() as self.asked:
                    item = next(training, None)
                if item is None:
                    return
                yield item

    def over(self, items: Iterable[Item], steps: int) -> Iterator[Item]:
        """Yield the items of a loop, and report after each that its step is done."""
        for number, item in enumerate(items, 1):
            yield item
            self.step(number, steps)
