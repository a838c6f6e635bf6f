"""What a method or an attack tells while it runs: the step that it has done, of how many, and its losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

Item = TypeVar("Item")
OnStep = Callable[[int, int, int, Mapping[str, Any]], None]  # step, steps, tokens since the last one, losses


def _silent(step: int, steps: int, tokens: int, losses: Mapping[str, Any]) -> None: ...


@dataclass
class Watch:
    """A watched loop.

    on_step    called after every step. Losses may be tensors on a device, which wait for it when they are read
    method, strength    what is at work: the name of a method or attack, and the strength that it prepares; None for one
               training that leads to all of them
    """

    on_step: OnStep = _silent
    method: str = ""
    strength: Any = None
    _tokens: int = 0
    _losses: dict[str, Any] = field(default_factory=dict)

    def note(self, tokens: int, **losses: Any) -> None:
        """Note what a pass of the present step has cost and given: numbers, or scalar tensors without a gradient."""
        self._tokens += tokens
        self._losses |= losses

    def step(self, step: int, steps: int) -> None:
        """Tell that a step is done."""
        self.on_step(step, steps, self._tokens, self._losses)
        self._tokens, self._losses = 0, {}

    def over(self, items: Iterable[Item], steps: int) -> Iterator[Item]:
        """Yield the items of a loop, and tell after each that its step is done."""
        for number, item in enumerate(items, 1):
            yield item
            self.step(number, steps)
