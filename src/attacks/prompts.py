"""Shared part of attacks on prompts: rows with other tokens before the continuation, or fewer."""

from __future__ import annotations

from dataclasses import replace

import torch

from tinymem.data.dataset import Artifacts
from tinymem.options import option, settings


@settings
class Prompting:
    """Settings that all attacks on prompts share."""

    sequences: int = option(200, "attack at most this many of the shown, held-out ... sequences", low=1)


@settings
class PromptChanges(Prompting):
    """Settings of attacks that cut or replace tokens of a prompt."""

    keep_bos: bool = option(
        True, "keep <bos> at the start of a prompt that begins with it", unrecorded=True, earlier=False
    )


def bos_kept(model, artifacts: Artifacts, keep_bos: bool) -> torch.Tensor:
    """Return which prompts keep their <bos>, bool (A,): those that begin with the model's; none without `keep_bos`."""
    bos = model.config.get_text_config().bos_token_id
    if not keep_bos or bos is None:
        return torch.zeros(len(artifacts), dtype=torch.bool)
    return artifacts.clean[:, 0] == bos


def recited(artifacts: Artifacts) -> torch.Tensor:
    """Return each clean prompt followed by the planted tokens, (A, T)."""
    inside = torch.arange(artifacts.planted.shape[1]) < artifacts.prompt_end[:, None]
    return torch.where(inside, artifacts.clean, artifacts.planted)


def cut(artifacts: Artifacts, start: torch.Tensor, kept: torch.Tensor | None = None) -> Artifacts:
    """Return the rows without their first `start` (A,) tokens, padded to their width with their last token.

    kept: bool (A,), rows that keep their first token and lose the next `start` instead; default: none.
    """
    last = artifacts.planted.shape[1] - 1
    places = (start[:, None] + torch.arange(last + 1)).clamp(max=last)
    if kept is not None:
        places[kept, 0] = 0
    planted, clean = (tokens.gather(1, places) for tokens in (artifacts.planted, artifacts.clean))
    return replace(artifacts, planted=planted, clean=clean, prompt_end=artifacts.prompt_end - start)


def context_of(model) -> int | None:
    """Return how many tokens the model takes; None: no limit is known."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
