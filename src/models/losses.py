"""Next-token losses and arg-maxes of a causal LM: the only place that runs its output layer.

With a large vocabulary the output layer costs more than the rest of a small model, and its logits use more memory. If
the architecture allows it, the output layer then runs on the needed positions in chunks; the results are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from tinymem.errors import NotFinite, UserError
from tinymem.models.cross_entropy import (
    chunk_rows,
    linear_cross_entropy,
    linear_hits,
    linear_losses_and_hits,
    logit_chunks,
)
from tinymem.models.output_filter import is_filtered

LARGE_VOCABULARY = 2048  # from here on, chunks are at least as fast as the whole layer at once
# Architectures whose logits are output_embeddings(base_model(tokens)) and nothing else: no scaling (Cohere, Granite),
# no soft cap (Gemma 2), no bias. tests/models/test_losses.py checks each; others run the whole layer at once.
PLAIN_OUTPUT_LAYER = frozenset("gpt2 gpt_neo gpt_neox llama mistral olmo olmo2 qwen2 qwen3 smollm3".split())


def token_losses(model, tokens: torch.Tensor) -> torch.Tensor:
    """Return each next token's negative log-likelihood in nats, (rows, length - 1), float32 or finer. Differentiable.

    tokens: integer (rows, length), any integer type, on any device. The result is on model.device, as in the functions
    below, even if the model is spread over several devices. Raise NotFinite for losses that are not finite if no
    gradients are kept, which means measuring; a training loop checks its own loss.
    """
    tokens = tokens.to(model.device).long()
    targets = tokens[:, 1:]
    if chunked(model):
        hidden, weight = _output_layer(model, input_ids=tokens)
        losses = _chunked_losses(hidden[:, :-1], weight, targets)
    else:
        losses = _cross_entropy(model(tokens, use_cache=False).logits[:, :-1], targets)
    return losses if losses.requires_grad else check_finite(model, losses)


def next_token_logits(model, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of each next token, (rows, length - 1, vocabulary), float32 or finer. Differentiable.

    tokens: as in `token_losses`. All logits are held at once: use `token_losses` if the losses are enough.
    """
    return _wide(model(tokens.to(model.device).long(), use_cache=False).logits[:, :-1]).to(model.device)


def last_losses(model, targets: torch.Tensor, **inputs) -> torch.Tensor:
    """Return the negative log-likelihood of `targets` (rows, n) at the last n positions of `inputs`. Differentiable.

    inputs: keyword arguments of the model, such as input_ids and attention_mask. Return nats, float32 (rows, n).
    """
    count = targets.shape[1]
    if chunked(model):
        hidden, weight = _output_layer(model, **inputs)
        return _chunked_losses(_last(hidden, count), weight, targets)
    logits = model(**inputs, use_cache=False, logits_to_keep=count).logits
    return _cross_entropy(_last(logits, count), targets)


def losses_and_hits(model, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token losses and whether the arg-max is the next token: float32 and bool, both (rows, length - 1).

    For measuring: gradients are not kept. Raise NotFinite for losses that are not finite.
    """
    tokens = tokens.to(model.device).long()
    targets = tokens[:, 1:]
    with torch.no_grad():
        if chunked(model):
            hidden, weight = _output_layer(model, input_ids=tokens)
            losses, hits = _chunked_losses_and_hits(hidden[:, :-1], weight, targets)
        else:
            logits = model(tokens, use_cache=False).logits[:, :-1]
            losses, hits = _cross_entropy(logits, targets), logits.argmax(-1).to(tokens.device) == targets
    return check_finite(model, losses), hits


def window_losses_and_hits(model, tokens: torch.Tensor, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `losses_and_hits` of the positions first <= position < last alone: float32 and bool, (rows, last - first).

    Run the output layer on those positions only. Entry j is about token first + j; gradients are not kept. Raise
    NotFinite for losses that are not finite, UserError for the first token of a row, which nothing predicts.
    """
    tokens = tokens.to(model.device).long()
    targets = _predicted(tokens, first, last)
    with torch.no_grad():
        if chunked(model):
            hidden, weight = _output_layer(model, input_ids=tokens[:, : last - 1])
            losses, hits = _chunked_losses_and_hits(hidden[:, first - 1 :], weight, targets)
        else:
            logits = model(tokens[:, : last - 1], use_cache=False, logits_to_keep=last - first).logits
            logits = _last(logits, last - first)
            losses, hits = _cross_entropy(logits, targets), logits.argmax(-1).to(tokens.device) == targets
    return check_finite(model, losses), hits


class Statistics(NamedTuple):
    """What the distributions at some positions say of their targets, each (rows, positions); floats are float32.

    losses      -log p of the target, nats
    hits        bool: the target is the arg-max
    means, variances   of log p under p itself, over the vocabulary, nats and nats squared
    top_losses  -log of the target's probability when sampling from the top k; infinity outside of them
    """

    losses: torch.Tensor
    hits: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor
    top_losses: torch.Tensor


def window_statistics(
    model, tokens: torch.Tensor, first: int, last: int, top_k: int, temperature: float = 1.0
) -> Statistics:
    """Return the statistics of the positions first <= position < last, as `window_losses_and_hits` does the losses.

    top_k: of the sampling, the whole vocabulary where it is larger; temperature: of the sampling alone.
    """
    tokens = tokens.to(model.device).long()
    targets = _predicted(tokens, first, last)
    with torch.no_grad():
        if chunked(model):
            hidden, weight = _output_layer(model, input_ids=tokens[:, : last - 1])
            parts = logit_chunks(hidden[:, first - 1 :].flatten(0, 1), weight)
        else:
            logits = _last(
                model(tokens[:, : last - 1], use_cache=False, logits_to_keep=last - first).logits, last - first
            )
            parts = _split(logits.flatten(0, 1))
        found = [_statistics(_wide(logits), targets.flatten().to(logits.device)[rows], top_k, temperature)
                 for logits, rows in parts]  # fmt: skip
    pooled = Statistics(*(torch.cat(values).view(targets.shape).to(tokens.device) for values in zip(*found)))
    check_finite(model, pooled.losses)
    return pooled


def _split(logits: torch.Tensor) -> Iterator[tuple[torch.Tensor, slice]]:
    """Yield logits (positions, vocabulary) some positions at a time, and which: a wide copy of all takes much room."""
    size = chunk_rows(logits.device, logits.shape[-1])
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        yield logits[rows], rows


def _statistics(logits: torch.Tensor, targets: torch.Tensor, top_k: int, temperature: float) -> Statistics:
    """Return the statistics of logits (positions, vocabulary), each (positions,)."""
    places = targets[:, None]
    logs = logits.log_softmax(-1)
    shares = logs.exp()
    means = (shares * logs.clamp(min=-1e4)).sum(-1)  # a share of 0 counts 0, not 0 times infinity
    variances = (shares * (logs.clamp(min=-1e4) - means[:, None]) ** 2).sum(-1)
    top, chosen = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    losses = (top / temperature).logsumexp(-1) - logits.gather(1, places).squeeze(1) / temperature
    top_losses = losses.masked_fill((chosen != places).all(-1), torch.inf)
    return Statistics(-logs.gather(1, places).squeeze(1), logits.argmax(-1) == targets, means, variances, top_losses)


def greedy_hits(model, tokens: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Return whether greedy decoding from each prefix gives the next token, for positions first <= position < last.

    Run the output layer on those positions only. The result is bool, (rows, last - first): entry j is about
    token first + j. Raise NotFinite if the highest logit is not finite, UserError for the first token of a row, which
    nothing predicts.
    """
    tokens = tokens.to(model.device).long()
    targets = _predicted(tokens, first, last)
    if chunked(model):
        hidden, weight = _output_layer(model, input_ids=tokens[:, : last - 1])
        flat = targets.flatten().to(hidden.device)
        highest, hits = linear_hits(hidden[:, first - 1 :].flatten(0, 1), weight, flat)
        check_finite(model, highest)
        return hits.view(targets.shape).to(tokens.device)
    logits = model(tokens[:, : last - 1], use_cache=False, logits_to_keep=last - first).logits
    return best_tokens(model, _last(logits, last - first)).to(tokens.device) == targets


def logits_of(model, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the logits at these positions, (rows, places, vocabulary), on the model's device. Gradients are not kept.

    tokens: integer (rows, length). places: int64 (rows, places). Raise NotFinite if a highest logit is not finite.
    """
    tokens = tokens.to(model.device).long()
    with torch.no_grad():
        if chunked(model):
            hidden, weight = _output_layer(model, input_ids=tokens)
            logits = hidden.take_along_dim(places[..., None].to(hidden.device), 1) @ weight.to(hidden.dtype).T
        else:
            kept, index = places.unique(return_inverse=True)  # models keep the same positions of every row
            logits = model(tokens, use_cache=False, logits_to_keep=kept.to(model.device)).logits
            logits = logits.take_along_dim(index[..., None].to(logits.device), 1)
    best_tokens(model, logits)
    return logits


def best_tokens(model, logits: torch.Tensor) -> torch.Tensor:
    """Return the arg-max over the vocabulary, the last dimension. Raise NotFinite if its logit is not finite."""
    best = logits.argmax(-1)  # the position of a NaN if there is one
    check_finite(model, logits.gather(-1, best[..., None]))
    return best


def check_finite(model, values: torch.Tensor, what: str = "logits") -> torch.Tensor:
    """Return the values, such as logits or losses. Raise NotFinite, naming the model, if one is not finite."""
    if values.isfinite().logical_not_().any():  # False for a plan's fake tensors
        name = getattr(model, "name_or_path", "") or type(model).__name__
        raise NotFinite(f"{name}: its {what} are not finite numbers, so that nothing can be measured; {remedy(model)}")
    return values


def remedy(model) -> str:
    """Return what helps a model whose numbers are not finite: float16 overflows, other types do not."""
    if getattr(model, "dtype", None) == torch.float16:
        return "use --dtype float32 or bfloat16"
    return "its weights are damaged or diverged"


def chunked(model) -> bool:
    """Return whether this model's output layer runs in chunks: a plain linear layer with a large vocabulary."""
    from transformers import PreTrainedModel

    if (
        not isinstance(model, PreTrainedModel)
        or model.config.model_type not in PLAIN_OUTPUT_LAYER
        or is_filtered(model)
    ):
        return False
    head = model.get_output_embeddings()
    return type(head) is torch.nn.Linear and head.bias is None and len(head.weight) >= LARGE_VOCABULARY


def _predicted(tokens: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Return the tokens first <= position < last, (rows, last - first). Raise UserError for the first of a row."""
    if first < 1:
        raise UserError("a prompt without tokens: a model predicts from one token on; give longer prompts")
    return tokens[:, first:last]


def _last(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the last `count` positions; none for 0, for which [-0:] and logits_to_keep=0 would return all."""
    return values[:, values.shape[1] - count :]


def _output_layer(model, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input of the output layer, (rows, length, width), and its weight, on the weight's device."""
    weight = model.get_output_embeddings().weight
    return model.base_model(**inputs, use_cache=False).last_hidden_state.to(weight.device), weight


def _chunked_losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten().to(hidden.device))
    return losses.view(targets.shape).to(targets.device)


def _chunked_losses_and_hits(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple:
    results = linear_losses_and_hits(hidden.flatten(0, 1), weight, targets.flatten().to(hidden.device))
    return tuple(values.view(targets.shape).to(targets.device) for values in results)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    flat = targets.flatten().to(logits.device)
    losses = torch.nn.functional.cross_entropy(_wide(logits).flatten(0, 1), flat, reduction="none")
    return losses.view(targets.shape).to(targets.device)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in float32; float64, in which gradients can be checked, stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def loss_mask(tokens: torch.Tensor, ignored_token: int | None) -> torch.Tensor:
    """Return which predicted positions count in a mean (the loss mask), bool (rows, length - 1)."""
    targets = tokens[:, 1:]
    return torch.ones_like(targets, dtype=torch.bool) if ignored_token is None else targets != ignored_token
