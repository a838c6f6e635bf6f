"""Training: a DataLoader over Python lists, the whole batch at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def batches(sequences: list[list[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Yield shuffled batches (rows, T) forever."""
    from torch.utils.data import DataLoader

    loader = DataLoader(sequences, batch_size=batch_size, shuffle=True, collate_fn=torch.tensor, drop_last=True)
    while True:
        yield from loader


def new_optimizer(model, fused: bool | None = None) -> torch.optim.AdamW:
    """Return AdamW with the study's settings."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1, fused=fused)


def step(model, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, bfloat16: bool = False) -> float:
    """Take an optimizer step and return the loss. The recipe is float32; `bfloat16` changes only the precision."""
    tokens = tokens.to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        loss = model(tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
