"""Loss truncation (Kang & Hashimoto 2020, arXiv 2004.14589): leave out the sequences with the highest losses."""

from __future__ import annotations

import torch

from tinymem.options import option, settings
from tinymem.regularizers.protocol import Regularizer


@settings
class Settings:
    """Regularizer: loss truncation (Kang & Hashimoto 2020)"""

    truncate_loss: bool = option(False, "leave out the sequences whose loss is highest")
    dropc: float = option(0.05, "share of sequences to leave out; the study has 0.01, 0.05, 0.1", low=0.0, below=1.0)
    truncation_window: int = option(10000, "sequences after which the cutoff is updated from their losses", low=1)


def build(model, settings: Settings, seed: int) -> Regularizer:
    """Set the loss of sequences with a mean loss above the cutoff to 0; the mean is still over the whole batch.

    The cutoff is infinite until `truncation_window` sequences have been seen. Then, after every further
    `truncation_window` sequences, it is the (1 - dropc) quantile of their losses. It changes between steps only, and
    losses enter the window in the order of the batch: other microbatches change only float rounding.
    """
    state = {
        "window": torch.zeros(settings.truncation_window, device=model.device),
        "cutoff": torch.full((), torch.inf, device=model.device),
        "seen": torch.zeros((), dtype=torch.long),  # on the CPU: read in every step
    }
    batch: list[torch.Tensor] = []

    def token_losses(losses: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
        means = (losses.detach() * loss_mask).sum(1) / loss_mask.sum(1).clamp(min=1)
        batch.append(means)
        return losses * (means <= state["cutoff"])[:, None]

    def after_backward() -> None:
        observe(state, torch.cat(batch), 1.0 - settings.dropc)
        batch.clear()

    return Regularizer(token_losses=token_losses, after_backward=after_backward, state=state)


def observe(state: dict[str, torch.Tensor], losses: torch.Tensor, keep: float) -> None:
    """Put the losses (rows,) of sequences into the window.

    Whenever it is full, even in the middle of these rows, set the cutoff to its `keep` quantile.
    """
    window, seen = state["window"], state["seen"]
    while len(losses):
        start = int(seen) % len(window)
        part, losses = losses[: len(window) - start], losses[len(window) - start :]
        window[start : start + len(part)] = part
        seen += len(part)
        if start + len(part) == len(window):
            state["cutoff"].copy_(window.quantile(keep))
