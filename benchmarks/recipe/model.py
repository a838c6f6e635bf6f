"""Stock GPT-2 of transformers."""

from __future__ import annotations

import copy

import torch


def stock_copy(model, attention: str) -> torch.nn.Module:
    """Return a stock GPT-2 with the weights of `model`. attention: "eager" (the recipe's) or "sdpa" (the best)."""
    from transformers import GPT2LMHeadModel

    config = copy.deepcopy(model.config)
    config._attn_implementation = attention
    stock = GPT2LMHeadModel(config)
    stock.load_state_dict(model.state_dict())
    return stock.to(model.device).train(model.training)


def mlp_parameters(model) -> dict[str, torch.nn.Parameter]:
    """Return weights and biases of all MLPs, as stored."""
    return {name: parameter for name, parameter in model.named_parameters() if ".mlp." in name}


def mlp_matrices(model) -> dict[str, torch.nn.Parameter]:
    """Return only the weights."""
    return {name: parameter for name, parameter in mlp_parameters(model).items() if name.endswith("weight")}
