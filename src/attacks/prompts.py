"""Shared part of attacks on prompts: rows with other tokens before the continuation, or fewer."""

from __future__ import annotations

from dataclasses import replace

import torch

from tinymem.data.dataset import Artifacts
from tinymem.options import option, settings


@settings
class Prompting:
    """Settings that all attacks on prompts share."""

    sequences: int = option(200, "at most this many of the shown, held-out ... sequences are attacked", low=1)


def recited(artifacts: Artifacts) -> torch.Tensor:
    """Return each clean prompt followed by the planted tokens, (A, T)."""
    inside = torch.arange(artifacts.planted.shape[1]) < artifacts.prompt_end[:, None]
    return torch.where(inside, artifacts.clean, artifacts.planted)


def cut(artifacts: Artifacts, start: torch.Tensor) -> Artifacts:
    """Return the rows from position `start` (A,) on, as wide as before: a row's last token fills it up."""
    last = artifacts.planted.shape[1] - 1
    places = (start[:, None] + torch.arange(last + 1)).clamp(max=last)
    planted, clean = (tokens.gather(1, places) for tokens in (artifacts.planted, artifacts.clean))
    return replace(artifacts, planted=planted, clean=clean, prompt_end=artifacts.prompt_end - start)


def context_of(model) -> int | None:
    """Return how many tokens the model takes; None: no limit is known."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
