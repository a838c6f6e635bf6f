"""Similar tokens: replace some tokens of the prompt by those with the closest embeddings.

Huang et al. 2024 (arXiv 2407.17817, section 5) do this with similar words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from tinymem.attacks.prompts import PromptChanges, bos_kept
from tinymem.data.dataset import Artifacts
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.elicitation import Elicitation, Variant, any_exact
from tinymem.metrics.probe import Probe
from tinymem.options import option, settings


@settings
class HyperParameters(PromptChanges):
    """Similar tokens"""

    replaced: tuple[int, ...] = option((1, 4), "most tokens replaced in a prompt", low=1, strength=True, small=(1,))
    draws: int = option(8, "prompts that the attacker tries, with 1, 2, ... tokens replaced in turn", low=1, high=1024)


def elicit(model, task: UnlearningTask, hp: HyperParameters, replaced: int) -> Elicitation:
    """Return the attack that succeeds if the continuation comes out after any of the changed prompts."""

    def varied(probe: Probe, artifacts: Artifacts) -> Iterator[Variant]:
        _, loss_mask = probe.targets(artifacts)
        generator, kept = task.generator(), bos_kept(probe.model, artifacts, hp.keep_bos)
        for draw in range(hp.draws):
            clean = _varied(probe.model, artifacts, draw % replaced + 1, generator, kept)
            yield replace(artifacts, clean=clean), loss_mask

    return any_exact(varied, hp.sequences)


def _varied(model, artifacts: Artifacts, count: int, generator: torch.Generator, kept: torch.Tensor) -> torch.Tensor:
    """Return clean rows with `count` tokens of each prompt replaced, all of them if it has fewer.

    kept: bool (A,), rows whose first token stays.
    """
    inside = torch.arange(artifacts.clean.shape[1]) < artifacts.prompt_end[:, None]
    inside[kept, 0] = False
    order = torch.rand(inside.shape, generator=generator).masked_fill(~inside, 2.0).argsort(1)
    chosen = torch.zeros_like(inside).scatter(1, order[:, :count], True) & inside
    rows = artifacts.clean.clone()
    rows[chosen] = closest(model.get_input_embeddings().weight.detach(), rows[chosen].long()).to(rows)
    return rows


def closest(embeddings: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return for each token (N,) the other token whose embedding has the highest cosine similarity, int64 (N,)."""
    wanted, places = tokens.to(embeddings.device).unique(return_inverse=True)
    units = torch.nn.functional.normalize(embeddings.float(), dim=1)
    found = []
    for some in wanted.split(256):
        similarity = units[some] @ units.T
        similarity[torch.arange(len(some)), some] = -torch.inf
        found.append(similarity.argmax(1))
    return torch.cat([*found, wanted[:0]])[places].to(tokens.device)
