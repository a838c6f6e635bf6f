"""Shortened prompts: cut off the first tokens (stress test: Huang et al. 2024, arXiv 2407.17817, section 5)."""

from __future__ import annotations

from collections.abc import Iterator

from tinymem.attacks.prompts import PromptChanges, bos_kept, cut
from tinymem.data.dataset import Artifacts
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.elicitation import Elicitation, Variant, any_exact
from tinymem.metrics.probe import Probe
from tinymem.options import option, settings


@settings
class HyperParameters(PromptChanges):
    """Shortened prompts"""

    tokens: tuple[int, ...] = option(
        (1, 4, 16),
        "most tokens to cut off: the attacker tries 1, 2, ... tokens",
        low=1,
        strength=True,
        small=(4,),
    )


def elicit(model, task: UnlearningTask, hp: HyperParameters, tokens: int) -> Elicitation:
    """Return the attack that succeeds if the continuation comes out after any cut up to `tokens`; one token stays."""

    def shortened(probe: Probe, artifacts: Artifacts) -> Iterator[Variant]:
        _, loss_mask = probe.targets(artifacts)
        kept, longest = bos_kept(probe.model, artifacts, hp.keep_bos), int(artifacts.prompt_end.max())
        for count in range(1, min(tokens, longest - 1) + 1):
            yield cut(artifacts, (artifacts.prompt_end - 1).clamp(min=0, max=count), kept), loss_mask

    return any_exact(shortened, hp.sequences)
