"""Rank the methods of an experiment by their best run, name the winner, and state the result as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tinymem.records.choose import (
    VALIDATION,
    Configuration,
    best_of,
    candidates,
    leading,
    merit,
    over_limit,
    without_effect,
)
from tinymem.records.grouping import differing, grouped
from tinymem.records.identity import UNEDITED
from tinymem.records.strength import strength_in, with_strength
from tinymem.records.verdict import OVER_FORGOTTEN, verdict

SIMILAR = 1.2  # factor by which durations of the same run vary from day to day


@dataclass(frozen=True)
class Ranking:
    """The best run of each method of one experiment.

    original   the unedited model; None without a record of it
    places     the methods' best runs: first those within the utility limit, best first, then those over the limit,
               nearest first, then those without effect
    every      all configurations of the experiment except the unedited model's
    limit      the largest allowed rise of perplexity in percent; number models have a trade-off instead
    """

    original: Configuration | None
    places: Sequence[Configuration]
    every: Sequence[Configuration]
    limit: float

    def over(self, one: Configuration) -> bool:
        """Return whether a run is over the utility limit."""
        return over_limit(one, self.limit)

    def wins(self, one: Configuration) -> bool:
        """Return whether a run may win: it forgets, keeps the limit, and (number models) forgets more than it costs."""
        worth = not one.on_numbers or one.known_mean("trade_off") < 0
        return not without_effect(one) and not self.over(one) and worth

    @property
    def winner(self) -> Configuration | None:
        """The best run; None if no run may win."""
        return next(filter(self.wins, self.places[:1]), None)

    @property
    def cheapest(self) -> Configuration | None:
        """The best run among the candidates that may win, leave nothing memorized and take few seconds, or None.

        Nothing: neither of the training sequences nor, if there are some, of the validation sequences. Few seconds: at
        most SIMILAR times the fewest, since durations vary that much. An unknown duration counts as longest.
        """
        complete = [one for one in candidates(self.every) if self.wins(one) and forgets_everything(one)]
        known = [one.mean("cost.seconds") for one in complete]
        seconds = [math.inf if each is None else each for each in known]
        few = [one for one, each in zip(complete, seconds) if each <= SIMILAR * min(seconds)]
        return best_of(few) if few else None

    @cached_property
    def varied(self) -> dict[str, set[str]]:
        """For each method, the hyper-parameters that vary among its configurations."""
        some = [*self.every, *([self.original] if self.original else [])]
        by_method = grouped(some, lambda one: one.method)
        return {rivals[0].method: set(differing([rival.hyper_parameters for rival in rivals])) for rivals in by_method}


def forgets_everything(one: Configuration) -> bool:
    """Return whether no training sequence and no validation sequence is memorized."""
    return one.mean("percent_memorized_train") == 0 and one.mean(VALIDATION) in (0, None)


def ranked(some: Iterable[Configuration], max_perplexity_rise: float = math.inf) -> Ranking:
    """Return the ranking of one experiment's methods. max_perplexity_rise: as in `leading`."""
    some = list(some)
    edited = [one for one in some if one.method != UNEDITED]
    original = next((one for one in some if one.method == UNEDITED), None)

    def place(one: Configuration) -> tuple:
        over = over_limit(one, max_perplexity_rise)
        return without_effect(one), over, one.known_mean("perplexity_rise_percent") if over else 0.0, merit(one)

    return Ranking(original, sorted(leading(edited, max_perplexity_rise), key=place), edited, max_perplexity_rise)


def answer(ranking: Ranking) -> list[str]:
    """Return the ranking as text: the winner, or why there is none, then the cheapest run that forgets everything."""
    if not ranking.places:
        return ["best: none, there is no run of a method beside the unedited model"]
    winner, cheapest, first = ranking.winner, ranking.cheapest, ranking.places[0]
    if winner is not None:
        lines = [f"best: {spoken(ranking, winner)}" + (", over-forgotten" if verdict(winner) == OVER_FORGOTTEN else "")]
    elif without_effect(first):
        return ["best: none, no run lowered memorization by a point"]
    elif first.on_numbers:
        return [f"best: none, every run costs more than it forgets; the nearest is {spoken(ranking, first)}"]
    else:
        return [
            f"best: none, every run that forgets raises perplexity by more than {ranking.limit:g} %; "
            f"the nearest is {spoken(ranking, first)}"
        ]
    if cheapest is None:
        return [*lines, "no run within the limits forgets everything"]
    what = "the same run" if cheapest is winner else spoken(ranking, cheapest)
    seconds = cheapest.mean("cost.seconds")
    return [*lines, f"cheapest that forgets everything: {what}" + ("" if seconds is None else f", {seconds:.3g} s")]


def spoken(ranking: Ranking, one: Configuration) -> str:
    """Return a run as text, such as "balanced_subnet 0.1: 0 % memorized, perplexity +12.6 %"."""
    if one.on_numbers:
        cost = f"accuracy {100 * one.known_mean('change_accuracy'):+.3g} points"
    else:
        cost = f"perplexity {one.mean('perplexity_rise_percent'):+.3g} %"
    return f"{called(ranking, one)}: {one.mean('percent_memorized_train'):.3g} % memorized, {cost}"


def called(ranking: Ranking, one: Configuration) -> str:
    """Return a method, its strength, and its other settings that vary: "npo 50 (beta 0.03, lr 0.001)"."""
    strength = strength_in(one.hyper_parameters)
    others = sorted(ranking.varied[one.method] - {strength[0] if strength else None})
    more = ", ".join(f"{name} {one.hyper_parameters.get(name)}" for name in others)
    return with_strength(one.method, one.hyper_parameters) + (f" ({more})" if more else "")
