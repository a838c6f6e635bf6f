"""Output filter: nothing that completes an n-gram of the forget set leaves the model. An anchor of the leaderboard.

It costs nothing and changes no weights, so a mitigation must do better to be worth its cost.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinymem.models.output_filter import OutputFilter, ngrams_of
from tinymem.options import option, settings


@settings
class HyperParameters:
    """Output filter"""

    n: tuple[int, ...] = option((10,), "tokens of an n-gram", low=2, strength=True, grid=(6, 10, 20, 40))


def run(model, task, hp: HyperParameters) -> Iterator[tuple[int, OutputFilter]]:
    """Yield, for every n, a filter of the n-grams that end in a continuation of the forget set."""
    for n in hp.n:
        yield n, OutputFilter(ngrams_of(task.forget.planted, task.forget.prompt_end, n, task.ignored_token))
