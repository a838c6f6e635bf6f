"""Shifted prompts: move the prompt to the right, which gives away the first tokens of the memory.

The rest must come out. Prompts are as long as before (position stress test: Huang et al. 2024, arXiv 2407.17817,
section 5).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tinymem.attacks.prompts import PromptChanges, bos_kept, cut, recited
from tinymem.data.dataset import Artifacts
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.elicitation import Elicitation, Variant, any_exact
from tinymem.metrics.probe import Probe
from tinymem.options import option, settings


@settings
class HyperParameters(PromptChanges):
    """Shifted prompts"""

    tokens: tuple[int, ...] = option(
        (1, 4, 10), "largest shift: the attacker tries 1, 2, ... tokens", low=1, strength=True, small=(4,)
    )


def elicit(model, task: UnlearningTask, hp: HyperParameters, tokens: int) -> Elicitation:
    """Return the attack that succeeds if the rest of the continuation comes out after any shift up to `tokens`."""

    def shifted(probe: Probe, artifacts: Artifacts) -> Iterator[Variant]:
        _, loss_mask = probe.targets(artifacts)
        kept = bos_kept(probe.model, artifacts, hp.keep_bos)
        for shift in range(1, min(tokens, probe.continuation - 1) + 1):
            left = torch.nn.functional.pad(loss_mask[:, shift:], (0, shift))
            yield cut(_given_away(artifacts, shift), torch.full_like(artifacts.prompt_end, shift), kept), left

    return any_exact(shifted, hp.sequences)


def _given_away(artifacts: Artifacts, count: int) -> Artifacts:
    """Return rows whose prompts end `count` tokens later and so include the start of the planted continuation."""
    rows = recited(artifacts)
    return Artifacts(rows, rows, artifacts.prompt_end + count, artifacts.group)
