"""Causal attention as batched matrix products: at TinyMem's sizes faster on CPUs than the fused kernel.

Registered with transformers under the name ATTENTION, so that the model stays a stock GPT-2. Same logits to float
tolerance as transformers' own implementations; whatever is not plain causal attention on a CPU (a GPU, padding
masks, a cache) is handed to transformers' `sdpa`.
"""

from __future__ import annotations

import torch

ATTENTION = "tinymem"


def register_attention() -> str:
    """Makes the name ATTENTION known to transformers; returns it. Calling it twice is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    return ATTENTION


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """transformers' attention protocol. query, key, value: (batch, heads, length, head width).

    Returns (batch, length, heads, head width), and None for the attention weights.
    """
    batch, heads, length, width = query.shape
    if attention_mask is not None or query.is_cuda or dropout or key.shape != query.shape:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    scaling = width**-0.5 if scaling is None else scaling
    # Autocast would keep the softmax in float32, and with it the largest tensors of the step; the kernel sums in
    # float32 inside either way.
    with torch.autocast("cpu", enabled=False):
        flat = (batch * heads, length, width)
        query, key, value = ((x if x.dtype == dtype else x.to(dtype)).reshape(flat) for x in (query, key, value))
        future = torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
        weights = torch.baddbmm(future, query * scaling, key.transpose(1, 2)).softmax(-1)
        mixed = torch.bmm(weights, value)
    return mixed.view(batch, heads, length, width).transpose(1, 2), None
