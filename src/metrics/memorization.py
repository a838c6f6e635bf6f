"""Exact (n, k) memorization in one forward pass (the study, definition 2.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tinymem.data.dataset import Artifacts
from tinymem.models.losses import greedy_hits


def reproduces(
    model,
    prompt: torch.Tensor,
    target: torch.Tensor,
    prompt_end: torch.Tensor,
    continuation: int,
    batch_size: int = 64,
    ignored_token: int | None = None,
) -> torch.Tensor:
    """Whether greedy decoding, prompted with tokens [0, prompt_end) of `prompt`, gives the next tokens of `target`.

    Greedy decoding reproduces a target exactly if and only if every teacher-forced arg-max on prompt + target equals
    the target, so one forward pass replaces the generation loop: same answer in the same precision.

    prompt, target: token ids (A, T). prompt_end: (A,). continuation: k; fewer tokens where the row ends first.
    ignored_token: an id that no loss counts (a pad), which is not demanded either.
    Returns bool (A,) on the CPU.
    """
    results = torch.zeros(len(prompt), dtype=torch.bool)
    if not len(prompt):
        return results
    # Rows with similar prompts go together, so that a batch runs the output layer on few positions.
    for rows in prompt_end.argsort(stable=True).split(batch_size):
        start = prompt_end[rows, None]
        first, last = int(start.min()), min(int(start.max()) + continuation, prompt.shape[1])
        columns = torch.arange(prompt.shape[1])
        tokens = torch.where(columns < start, prompt[rows], target[rows])
        outside = (columns < start) | (columns >= start + continuation)
        if ignored_token is not None:
            outside |= tokens == ignored_token
        with torch.inference_mode():
            hits = greedy_hits(model, tokens[:, :last], first, last).cpu()
        results[rows] = (hits | outside[:, first:last]).all(1)
    return results


def memorized(
    model, artifacts: Artifacts, continuation: int, batch_size: int = 64, ignored_token: int | None = None
) -> torch.Tensor:
    """Prompted with the clean twin's first tokens, does the planted continuation come out? bool (A,)."""
    sides = (artifacts.clean, artifacts.planted, artifacts.prompt_end)
    return reproduces(model, *sides, continuation, batch_size, ignored_token)


def remembering(
    model, continuation: int, batch_size: int = 64, ignored_token: int | None = None
) -> Callable[[Artifacts], torch.Tensor]:
    """`memorized` as a function of the artifacts alone, which runs no sequence a second time.

    For a model that does not change between the calls: sets that are measured apart and together cost a pass only once.
    """
    known: dict[bytes, bool] = {}

    def check(artifacts: Artifacts) -> torch.Tensor:
        rows = torch.cat([artifacts.clean, artifacts.planted, artifacts.prompt_end[:, None]], 1).numpy()
        keys = [row.tobytes() for row in rows]
        new = {key: number for number, key in enumerate(keys) if key not in known}
        unknown = artifacts.select(torch.tensor([*new.values()], dtype=torch.long))
        flags = memorized(model, unknown, continuation, batch_size, ignored_token)
        known.update(zip(new, flags.tolist()))
        return torch.tensor([known[key] for key in keys], dtype=torch.bool)

    return check


def recovered(
    model, artifacts: Artifacts, continuation: int, batch_size: int = 64, ignored_token: int | None = None
) -> torch.Tensor:
    """Prompted with the clean twin's first tokens, does its own continuation come out ("clean recovery")? bool (A,)."""
    sides = (artifacts.clean, artifacts.clean, artifacts.prompt_end)
    return reproduces(model, *sides, continuation, batch_size, ignored_token)


def percent(flags: torch.Tensor) -> float | None:
    """Share of true flags in percent; None for no flags at all (0/0 is not 0)."""
    return 100.0 * flags.float().mean().item() if len(flags) else None
