"""Sampling: the attacker draws n continuations (Hayes et al. 2024, arXiv 2410.19482).

One forward pass gives the odds.
"""

from __future__ import annotations

from tinymem.attacks.prompts import Prompting
from tinymem.data.dataset import Artifacts
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.elicitation import Elicitation
from tinymem.metrics.extraction import CHANCE, log_probabilities, needed
from tinymem.metrics.memorization import PERCENT_MEMORIZED
from tinymem.metrics.metric import Values
from tinymem.metrics.probe import TOP_K, Probe
from tinymem.options import option, settings


@settings
class HyperParameters(Prompting):
    """Sampling"""

    n: tuple[int, ...] = option((10, 100, 10000), "samples that the attacker draws", low=1, strength=True, small=(100,))
    p: float = option(CHANCE, "required probability that at least one sample is the memory", above=0.0, below=1.0)
    top_k: int = option(TOP_K, "likeliest tokens to sample from; the whole vocabulary if it is smaller", low=1)
    temperature: float = option(1.0, "temperature of the sampling", low=0.01)


def elicit(model, task: UnlearningTask, hp: HyperParameters, n: int) -> Elicitation:
    """Return the attack that succeeds if n samples hold the continuation with probability p or more."""

    def extractable(probe: Probe, artifacts: Artifacts) -> Values:
        found = log_probabilities(probe, artifacts, hp.top_k, hp.temperature)
        return Values((needed(found.sums, hp.p) <= n).double() * found.weights, found.weights)

    return Elicitation({PERCENT_MEMORIZED.name: extractable}, hp.sequences)
