"""Attacks on prompts: metrics of an unchanged model whose prompts an attacker has chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from tinymem.data.dataset import Artifacts
from tinymem.metrics.memorization import PERCENT_MEMORIZED, exact
from tinymem.metrics.metric import Values
from tinymem.metrics.probe import Probe

Variant = tuple[Artifacts, "torch.Tensor"]
Read = Callable[[Probe, Artifacts], "torch.Tensor | Values"]


@dataclass(frozen=True)
class Elicitation:
    """What an attack on prompts reads out of a model.

    values     metric name -> the value of each artifact under the attack, as in `metric.Metric.values`
    sequences  at most this many of each split are attacked, evenly spaced
    """

    values: Mapping[str, Read]
    sequences: int


def any_exact(variants: Callable[[Probe, Artifacts], Iterable[Variant]], sequences: int) -> Elicitation:
    """Return the attack that recovers a sequence if it comes out exactly, unchanged or in any of its variants.

    variants: pairs of rows that the attacker tries in place of the artifacts, as many, and the tokens that must come
    out, bool (A, k). A row that cannot be varied stays as it is.
    """

    def recovered(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
        found = exact(probe, artifacts)
        for variant, loss_mask in variants(probe, artifacts) if len(artifacts) else ():
            if len(variant) != len(artifacts) or loss_mask.shape != (len(artifacts), probe.continuation):
                raise ValueError(f"a variant of {len(artifacts)} sequences has another number of rows or tokens")
            found = torch.fmax(found, exact(probe, variant, loss_mask=loss_mask))  # NaN where no token counts
        return found

    return Elicitation({PERCENT_MEMORIZED.name: recovered}, sequences)
