"""Unlearning depth: is the memory gone from the hidden states too, at every layer? (Lee et al. 2026, 2605.24614.)

The model before the edit runs with the hidden states of another model after one of its blocks, at the positions that
predict the continuation. How much less likely the continuation becomes is what that model lacks at that layer. What the
never-planted twin lacks is the memory; the score is the share of it that the edited model lacks too.
"""

from __future__ import annotations

import torch

from tinymem.data.dataset import Artifacts
from tinymem.metrics.metric import COMPARED, PLANTED, Metric, no_values
from tinymem.metrics.probe import Probe
from tinymem.models.adapter import find_blocks
from tinymem.models.losses import window_losses_and_hits
from tinymem.models.patching import kept_states, patched

LEAST = 0.05  # nats per token that the twin must lack at a layer for the layer to count


def depths(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return each row's unlearning depth score, float64 (A,): 0 before the edit, 1 for the twin.

    NaN without a twin, and for a row of which the twin lacks less than LEAST at every layer.
    """
    if probe.twin is None or probe.original is None:
        return no_values(artifacts)
    return erased_share(*(drops(source, probe.original, artifacts) for source in (probe.twin, probe)))


def drops(source: Probe, original: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return how many nats per token less likely the source's states make each row, float64 (A, layers).

    The mean is over the k tokens after the planted prompt, without pads; NaN for none.
    """

    def compute(rows: Artifacts) -> torch.Tensor:
        return _patched_losses(source, original, rows)

    whole = original.teacher_forced(artifacts, prompt="planted", need="log_probabilities")
    losses = source.once("hidden states", artifacts, compute)
    rises = (losses.double() + whole.log_probabilities.double()[:, None]).masked_fill(~whole.real[:, None], 0.0)
    return rises.sum(2) / whole.lengths[:, None]


def _patched_losses(source: Probe, original: Probe, rows: Artifacts) -> torch.Tensor:
    """Return the original's losses with the source's states after each of its blocks, float32 (A, layers, k)."""
    layers, tokens, ends = len(find_blocks(source.model)[1]), rows.planted, rows.prompt_end

    def compute(some: torch.Tensor, first: int, last: int) -> list[torch.Tensor]:
        inputs = tokens[some, : last - 1].to(source.model.device).long()
        with kept_states(source.model) as states:
            source.model.base_model(input_ids=inputs, use_cache=False)
        places = torch.arange(last - 1) >= ends[some, None] - 1  # those that predict the continuation
        losses = []
        for layer, state in states.items():
            with patched(original.model, layer, state, places):
                losses.append(window_losses_and_hits(original.model, tokens[some, :last], first, last)[0])
        return losses

    return torch.stack(source.windows("hidden states", tokens, ends, compute, [torch.float32] * layers), 1)


def erased_share(twin: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """Return sum_l twin_l * clip(edited_l / twin_l, 0, 1) / sum_l twin_l over the layers with twin_l > LEAST.

    twin, edited: nats per token that become less likely by each layer's states, float64 (A, layers). Return (A,).
    """
    counts = twin > LEAST
    erased = torch.where(counts, edited.clamp(min=0).minimum(twin), 0.0)
    return erased.sum(1) / torch.where(counts, twin, 0.0).sum(1)  # 0 / 0 is NaN


UNLEARNING_DEPTH = Metric(
    "unlearning_depth", "0 to 1", "twin", PLANTED, ("original", "twin"),
    "share of what the twin's hidden states lack of the sequence that the edited model's lack too; 0 before the edit",
    depths, splits=COMPARED[:-1], known_when="low",
)  # fmt: skip
