"""Attention that sees only the nearest tokens, as configs of transformers describe it."""

from __future__ import annotations

import torch

SLIDING, CHUNKED = "sliding_attention", "chunked_attention"  # values of config.layer_types
SIZES = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}


def attention_windows(config) -> dict[str, int | None]:
    """Return for each kind of layer the tokens in its window, which include the one that looks; None: all before it.

    Kinds are those of config.layer_types. All layers of a model without that list are of one kind, as in Mistral.
    """
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None) or [SLIDING]
    windows = {kind: getattr(config, SIZES[kind], None) if kind in SIZES else None for kind in kinds}
    return windows if getattr(config, "use_sliding_window", True) else dict.fromkeys(windows)


def inside(places: torch.Tensor, kind: str, window: int | None) -> torch.Tensor:
    """Return which tokens (columns) are in the window of which (rows), bool (B, T, T). places: positions, (B, T)."""
    queries, keys = places[:, :, None], places[:, None, :]
    if window is None:
        return torch.ones_like(queries == keys)
    return queries // window == keys // window if kind == CHUNKED else queries - keys < window


def longest_row(config) -> int | None:
    """Return the tokens of a row above which a model's own mask hides some, whatever mask it is given; None: no limit.

    GPT-Neo's mask is as large as its context, and its local layers count the places in a row, not position ids.
    """
    if config.model_type != "gpt_neo":
        return None
    local = [config.window_size] if "local" in config.attention_layers else []
    return min([config.max_position_embeddings, *local])
