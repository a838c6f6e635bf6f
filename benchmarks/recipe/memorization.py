"""Memorization by generating."""

from __future__ import annotations

import torch


def memorized(
    model, clean: torch.Tensor, planted: torch.Tensor, prompt: int, count: int, end: int, cache: bool
) -> torch.Tensor:
    """Return whether the first `prompt` tokens of `clean` are continued by the next `count` of `planted`, bool (rows,).

    Generates up to `end` tokens. The recipe generates to the end of the context, without a cache.
    """
    prompts = clean[:, :prompt].long().to(model.device)
    with torch.no_grad():
        tokens = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_length=end, do_sample=False, use_cache=cache,
            eos_token_id=None,
        )  # fmt: skip
    window = slice(prompt, prompt + count)
    return (tokens[:, window].cpu() == planted[:, window]).all(1)
