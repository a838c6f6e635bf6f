"""Context shift: put other text of the task before the prompt, so that all positions move.

Contexts are the first tokens of retained sequences that teach nothing that is to be forgotten. A row stays as it is if
the model's context has no room for one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tinymem.attacks.prompts import Prompting, context_of
from tinymem.data.dataset import Artifacts, evenly_spaced
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.elicitation import Elicitation, Variant, any_exact
from tinymem.metrics.probe import Probe
from tinymem.options import option, settings

FLAG = "--attack context_shift"


@settings
class HyperParameters(Prompting):
    """Context shift"""

    contexts: tuple[int, ...] = option(
        (1, 4, 8), "contexts that the attacker tries", low=1, high=1024, strength=True, small=(4,)
    )
    context_tokens: int = option(16, "tokens of the longest context; the n-th of N contexts has n/N as many", low=1)


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError for a task without clean sequences to retain."""
    task.clean_retain(FLAG)


def elicit(model, task: UnlearningTask, hp: HyperParameters, contexts: int) -> Elicitation:
    """Return the attack that succeeds if the continuation comes out after any of the contexts, which grow longer."""
    clean = task.clean_retain(FLAG)
    texts = clean[evenly_spaced(len(clean), contexts)]

    def after_a_context(probe: Probe, artifacts: Artifacts) -> Iterator[Variant]:
        _, loss_mask = probe.targets(artifacts)
        for number, text in enumerate(texts, 1):
            context = text[: max(1, hp.context_tokens * number // len(texts))]
            yield _with_context(context, artifacts, probe.continuation, context_of(probe.model)), loss_mask

    return any_exact(after_a_context, hp.sequences)


def _with_context(context: torch.Tensor, artifacts: Artifacts, continuation: int, limit: int | None) -> Artifacts:
    """Return the rows with a context (C,) before them, where prompt and continuation still fit the model."""
    needed, size = (artifacts.prompt_end + continuation).clamp(max=artifacts.planted.shape[1]), len(context)
    shift = torch.full_like(needed, size) if limit is None else torch.where(needed + size <= limit, size, 0)
    width = int((needed + shift).max())
    places = torch.arange(width) - shift[:, None]
    before = torch.nn.functional.pad(context, (0, max(0, width - size)))[:width]

    def moved(rows: torch.Tensor) -> torch.Tensor:
        return torch.where(places < 0, before.to(rows), rows.gather(1, places.clamp(0, rows.shape[1] - 1)))

    return Artifacts(moved(artifacts.planted), moved(artifacts.clean), artifacts.prompt_end + shift, artifacts.group)
