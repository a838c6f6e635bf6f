"""TinyMem models: small GPT-2s (the study, section 3.1), created and opened as ordinary Hugging Face models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from tinymem.errors import UserError
from tinymem.models.attention import attention_settings, register_attention
from tinymem.models.loading import read_config, read_model
from tinymem.options import option, settings


@settings
class ModelSettings:
    """Model"""

    n_layers: int = option(4, "transformer blocks; the study has 2, 4, 8, 16", low=1, high=48)
    n_heads: int = option(4, "attention heads", low=1, high=2**10)
    n_embd: int = option(128, "width; the MLPs are four times as wide", low=1, high=2**16)

    def __post_init__(self) -> None:
        if self.n_embd % self.n_heads:
            raise UserError(f"--n_embd {self.n_embd}: must be a multiple of --n_heads {self.n_heads}")


def new_model(settings: ModelSettings, vocabulary_size: int, max_ctx: int, seed: int, **special_tokens: Any):
    """Return a freshly initialized TinyMem model in float32 on the CPU. The same seed gives the same weights.

    Weights are normal with std 0.8 / sqrt(width), residual projections divided by sqrt(2 * layers), biases 0.
    special_tokens: bos_token_id, eos_token_id, pad_token_id.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    std = 0.8 / math.sqrt(settings.n_embd)
    config = GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=max_ctx,
        n_embd=settings.n_embd,
        n_layer=settings.n_layers,
        n_head=settings.n_heads,
        n_inner=4 * settings.n_embd,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=std,
        **special_tokens | {"attn_implementation": register_attention()},
    )
    model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.normal_(0.0, std / math.sqrt(2 * settings.n_layers), generator=generator)
            elif parameter.dim() == 2:
                parameter.normal_(0.0, std, generator=generator)
    return model


def load_model(path: str | Path, device: str | torch.device = "cpu"):
    """Open a folder with config.json and safetensors weights, in evaluation mode.

    Weights are read as float32. TinyMem models get the fast attention; other causal LMs keep their own. Models trained
    with example-tied dropout get their evaluation gate (`tinymem.models.channel_gate`). Raise UserError if the folder
    is missing, incomplete or damaged. Nothing is fetched and no code in the folder is run.
    """
    path = Path(path)
    config = read_config(path)
    return read_model(path, config, torch.float32, **attention_settings(config)).to(device).eval()
