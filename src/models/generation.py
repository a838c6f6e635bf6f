"""Greedy generation with a key-value cache, for any causal LM and prompts of different lengths."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from tinymem.errors import UserError
from tinymem.models.losses import best_tokens

NOTHING = -1  # marks positions without a generated token


def greedy_continuations(
    model, prompts: Sequence[torch.Tensor], count: int, batch_size: int = 64, eos: int | None = None,
    on_rows: Callable[[int, int], object] = lambda done, total: None,
) -> torch.Tensor:  # fmt: skip
    """Return the `count` tokens with which greedy decoding continues each prompt: int64 (rows, count), on the CPU.

    prompts    token ids, each (P,), at least one token
    batch_size most rows per forward pass; changes nothing but rounding
    eos        a token id that ends a row; default: none
    on_rows(done, total)   called at the start and after every batch

    Generation never runs past the model's context (config.max_position_embeddings): a row that reaches it ends there.
    NOTHING (-1) fills a row after its end. The model must be in evaluation mode. Raise UserError for an empty
    prompt, one longer than the context, and logits that are not finite numbers.
    """
    context = getattr(model.config, "max_position_embeddings", None) if hasattr(model, "config") else None
    for prompt in prompts:
        if not len(prompt):
            raise UserError("a prompt without tokens: generation needs at least one; give longer prompts")
        if context is not None and len(prompt) > context:
            raise UserError(
                f"a prompt of {len(prompt)} tokens: the model takes at most {context}; give shorter prompts"
            )
    results, done = torch.full((len(prompts), count), NOTHING), 0
    on_rows(done, len(prompts))
    longest = _longest_padded(model, count, context)
    for rows in _batches(prompts, batch_size, longest):
        with torch.inference_mode():
            results[rows] = _generate(model, [prompts[row] for row in rows], count, context, eos).cpu()
        on_rows(done := done + len(rows), len(prompts))
    return results


def _longest_padded(model, count: int, context: int | None) -> float:
    """Return the length of prompt up to which rows of different lengths can share a batch.

    Positions must count from each row's first token. The padded rows must not outgrow the context: a model may have a
    mask of its size (GPT-Neo), and a shorter row goes on when the longest has reached it.
    """
    if "position_ids" not in inspect.signature(getattr(model, "forward", model)).parameters:
        return 0
    return math.inf if context is None else context - count


def _batches(prompts: Sequence[torch.Tensor], batch_size: int, longest: float) -> Iterator[list[int]]:
    """Yield batches of row numbers by length of prompt; rows longer than `longest` share one with equally long rows."""
    batch: list[int] = []
    for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row])):
        length = len(prompts[row])
        if batch and (len(batch) == batch_size or longest < length != len(prompts[batch[0]])):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _generate(model, prompts: Sequence[torch.Tensor], count: int, context: int | None, eos: int | None) -> torch.Tensor:
    """Return the continuations of a batch, int64 (rows, count), on the model's device."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    width = int(lengths.max())
    padded = [torch.nn.functional.pad(prompt.long(), (width - len(prompt), 0)) for prompt in prompts]
    tokens = torch.stack(padded).to(model.device)
    real = torch.arange(width, device=model.device) >= width - lengths[:, None]
    mask = None if bool(real.all()) else real  # rows of one length need no mask, and attention is faster without
    generated = torch.full((len(prompts), count), NOTHING, device=model.device)
    ended, cache = torch.zeros(len(prompts), dtype=torch.bool, device=model.device), None
    for step in range(count):
        if context is not None:
            ended |= lengths + step >= context
        if ended.all():
            break
        logits, cache = _forward(model, tokens, mask, cache)
        best = best_tokens(model, logits).to(tokens.device)
        generated[:, step] = best.masked_fill(ended, NOTHING)
        if eos is not None:
            ended |= best == eos
        tokens = torch.cat([tokens, best[:, None]], 1)
        mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1), value=True)
    return generated


def _forward(model, tokens: torch.Tensor, mask: torch.Tensor | None, cache) -> tuple:
    """Return the logits after the last token, (rows, vocabulary), and the cache for the next step, or None."""
    inputs = tokens if cache is None else tokens[:, -1:]
    more = {} if cache is None else {"past_key_values": cache}
    if mask is not None:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        more |= {"attention_mask": mask.long(), "position_ids": positions[:, -inputs.shape[1] :]}
    output = model(inputs, use_cache=True, logits_to_keep=1, **more)
    return output.logits[:, -1], getattr(output, "past_key_values", None)
