"""Causal attention as batched matrix products: at TinyMem's sizes faster on CPUs than the fused kernel.

Queries are processed in blocks, each with the keys up to the block's end: later keys are masked anyway. With 150
positions in three blocks this saves a third of the work, forward and backward.

It is registered with transformers under the name ATTENTION, so the model stays a stock GPT-2. Logits equal those of
transformers' own implementations to float tolerance. Everything but plain causal attention on a CPU (a GPU, padding
masks, a cache) is left to transformers' `sdpa`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

ATTENTION = "tinymem"
QUERIES = 50  # per block; smaller blocks are no faster (measured)


def register_attention() -> str:
    """Register ATTENTION with transformers and return the name. Calling it twice is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    return ATTENTION


def attention_settings(config) -> dict[str, Any]:
    """Return the arguments of from_pretrained or from_config for this attention; empty unless it is a plain GPT-2."""
    plain_gpt2 = config.model_type == "gpt2" and not config.scale_attn_by_inverse_layer_idx
    return {"attn_implementation": register_attention()} if plain_gpt2 else {}


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Compute attention by transformers' protocol. query, key, value: (batch, heads, length, head width).

    Return (batch, length, heads, head width), and None for the attention weights.
    """
    batch, heads, length, width = query.shape
    if attention_mask is not None or query.is_cuda or dropout or key.shape != query.shape:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    scaling = width**-0.5 if scaling is None else scaling
    # Autocast would keep the softmax, the largest tensors of the step, in float32. The kernel sums in float32 either
    # way.
    with torch.autocast("cpu", enabled=False):
        flat = (batch * heads, length, width)
        query, key, value = ((x if x.dtype == dtype else x.to(dtype)).reshape(flat) for x in (query, key, value))
        mixed = _function().apply(query, key, value, scaling)
    return mixed.view(batch, heads, length, width).transpose(1, 2), None


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + QUERIES, length)) for start in range(0, length, QUERIES)]


def _weights(query: torch.Tensor, key: torch.Tensor, scaling: float, rows: slice) -> torch.Tensor:
    """Return attention weights of a block of queries on the keys up to its end, (batch * heads, rows, rows.stop)."""
    future = query.new_full((rows.stop - rows.start, rows.stop), float("-inf")).triu(1 + rows.start)
    return torch.baddbmm(future, query[:, rows], key[:, : rows.stop].transpose(1, 2), alpha=scaling).softmax(-1)


@cache
def _function() -> type[torch.autograd.Function]:
    """Return the autograd function on query, key, value (batch * heads, length, width); see tinymem.lazy."""

    class CausalAttention(torch.autograd.Function):
        @staticmethod
        def forward(context, query, key, value, scaling):
            mixed, kept = torch.empty_like(query), []
            for rows in _blocks(query.shape[1]):
                weights = _weights(query, key, scaling, rows)
                mixed[:, rows] = torch.bmm(weights, value[:, : rows.stop])
                kept.append(weights)
            context.save_for_backward(query, key, value, *kept)
            context.scaling = scaling
            return mixed

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, upstream):
            query, key, value, *kept = context.saved_tensors
            with torch.autocast(query.device.type, enabled=False):
                return *_gradients(query, key, value, kept, upstream.contiguous(), context.scaling), None

    return CausalAttention


def _gradients(query, key, value, kept: list[torch.Tensor], upstream: torch.Tensor, scaling: float) -> tuple:
    """Return the gradients with respect to query, key and value. kept: the attention weights of every block."""
    of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for rows, weights in zip(_blocks(query.shape[1]), kept):
        error, seen = upstream[:, rows], slice(0, rows.stop)
        of_weights = torch.bmm(error, value[:, seen].transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(scaling)
        of_query[:, rows] = torch.bmm(of_scores, key[:, seen])
        of_key[:, seen] += torch.bmm(of_scores.transpose(1, 2), query[:, rows])
        of_value[:, seen] += torch.bmm(weights.transpose(1, 2), error)
    return of_query, of_key, of_value
