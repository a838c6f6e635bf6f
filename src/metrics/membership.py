"""Membership inference: whether planted sequences can be told from never-planted ones of the same generator.

Every score is loss-like: the lower it is, the likelier the row was trained on. It covers the k tokens after the prompt
without pads, given the row's own first tokens as planted. The AUC is the mean placement of planted rows: the share of
never-planted rows that score higher. So the AUC has a value per row, like every metric.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from tinymem.data.dataset import Artifacts
from tinymem.metrics import metric
from tinymem.metrics.metric import COMPARED, MEMBERS, PLANTED, Metric, no_values
from tinymem.metrics.probe import Probe, Window
from tinymem.models.losses import check_finite, token_losses
from tinymem.models.trainable import frozen

LOWEST = 0.2  # share of the tokens that Min-K% looks at
LEAST_VARIANCE = 1e-6  # of Min-K%++
Score = Callable[[Probe, Artifacts], "torch.Tensor"]


def losses(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return the mean nats per token, float64 (A,); NaN for a row without tokens. All scores here have this form."""
    return _nats(probe, artifacts) / _window(probe, artifacts).lengths


def zlib_ratios(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return summed nats / compressed bytes, after Carlini et al. (2012.07805).

    The source divides the mean loss. Bytes grow with the row, so the sum keeps rows of different lengths comparable.
    The compressed bytes are the token ids, little-endian, as wide as they are stored: 1 byte for numbers, which is as
    good as the string of digits, and 4 for text.
    """
    window = _window(probe, artifacts)
    ids = window.targets.numpy().astype(_id_type(artifacts))
    sizes = [len(zlib.compress(row[real].tobytes())) for row, real in zip(ids, window.real.numpy())]
    found = _nats(probe, artifacts) / torch.tensor(sizes, dtype=torch.float64)
    return found.masked_fill(~window.real.any(1), torch.nan)


def min_k(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return the mean nats of the least likely 20 % of the tokens (Min-K%, 2310.16789)."""
    window = _window(probe, artifacts)
    return -_mean_of_lowest(window.log_probabilities.double(), window.real)


def min_k_plus(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return -(log p - mean) / standard deviation of the lowest 20 % of the tokens (Min-K%++, 2404.02936).

    Mean and deviation are those of log p over the vocabulary, under p.
    """
    window = _window(probe, artifacts, "distribution")
    deviations = window.variances.double().clamp(min=LEAST_VARIANCE).sqrt()
    return -_mean_of_lowest((window.log_probabilities.double() - window.means) / deviations, window.real)


def gradient_norms(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return the mean over all parameter tensors of the 2-norm of the loss's gradient (GradNorm, 2402.17012)."""
    return probe.once("gradients", artifacts, partial(_gradient_norms, probe))


def _gradient_norms(probe: Probe, rows: Artifacts) -> torch.Tensor:
    model, (_, real) = probe.model, probe.real_targets(rows)
    parameters, found = list(model.parameters()), no_values(rows)
    probe.on_rows("gradients", 0, len(rows))
    with frozen(model, parameters), torch.enable_grad():
        for row, end in enumerate(rows.prompt_end.tolist()):
            counts = real[row, : rows.planted.shape[1] - end]
            if counts.any():
                nats = token_losses(model, rows.planted[row : row + 1, : end + len(counts)])[0, end - 1 :]
                gradients = torch.autograd.grad(nats[counts.to(nats.device)].mean(), parameters, allow_unused=True)
                norms = [gradient.float().norm().item() for gradient in gradients if gradient is not None]
                check_finite(model, torch.tensor(norms), "gradients")
                found[row] = sum(norms) / len(parameters)
            probe.on_rows("gradients", row + 1, len(rows))
    return found


def losses_over_twin(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return the loss minus that of the never-planted twin; NaN without a twin."""
    if probe.twin is None:
        return no_values(artifacts)
    return losses(probe, artifacts) - losses(probe.twin, artifacts)


def distances_from_twin(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return, at each row's two losses, the larger gap between the distributions of the model's and the twin's losses.

    float64 (A,); the largest of all rows is the Kolmogorov-Smirnov distance. NaN without a twin.
    """
    if probe.twin is None:
        return no_values(artifacts)
    own, twin = losses(probe, artifacts), losses(probe.twin, artifacts)
    ordered = [side[~side.isnan()].sort().values for side in (own, twin)]

    def gaps(places: torch.Tensor) -> torch.Tensor:
        shares = [torch.searchsorted(side, places, right=True).double() / max(len(side), 1) for side in ordered]
        return (shares[0] - shares[1]).abs()

    return gaps(own).maximum(gaps(twin)).masked_fill(own.isnan(), torch.nan)


def placements(members: torch.Tensor, non_members: torch.Tensor) -> torch.Tensor:
    """Return for each member the share of non-members that score higher, ties one half: their mean is the AUC.

    members, non_members: (rows,), NaN for a row without a score. The shares are float64, NaN where there is nothing to
    compare.
    """
    others = non_members[~non_members.isnan()].double().sort().values
    scores = members.double()
    not_above = torch.searchsorted(others, scores, right=True)
    ties = not_above - torch.searchsorted(others, scores)
    found = (len(others) - not_above + ties / 2) / max(len(others), 1)
    return found.masked_fill(scores.isnan() | (len(others) == 0), torch.nan)


def bootstrap_auc(
    members: torch.Tensor, non_members: torch.Tensor, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the percentile interval of the AUC over resamples of both sets; None if one has fewer than two scores.

    members, non_members    scores, (rows,), NaN for a row without a score
    """
    inside, outside = (scores[~scores.isnan()].double().numpy() for scores in (members, non_members))
    if min(len(inside), len(outside)) < 2:
        return None
    wins = (outside > inside[:, None]) + 0.5 * (outside == inside[:, None])
    generator = np.random.default_rng(seed)
    times = [generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), draws) for rows in (inside, outside)]
    found = ((times[0] @ wins) * times[1]).sum(1) / wins.size
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def relative(auc: float, auc_twin: float) -> float:
    """Return 1 - |AUC - AUC of the twin| / AUC of the twin, clipped to 0 to 1: 1 = as if never planted (2605.24614)."""
    return min(max(1 - abs(auc - auc_twin) / auc_twin, 0.0), 1.0) if auc_twin > 0 else float(auc == 0)


def _auc(score: Score, probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return the placement of each row's score among those of the non-members."""
    if not probe.non_members:
        return no_values(artifacts)
    return placements(score(probe, artifacts), score(probe, probe.non_members))


def _window(probe: Probe, artifacts: Artifacts, need: str = "log_probabilities") -> Window:
    return probe.teacher_forced(artifacts, prompt="planted", need=need)


def _nats(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    window = _window(probe, artifacts)
    return -window.log_probabilities.double().masked_fill(~window.real, 0.0).sum(1)


def _mean_of_lowest(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the mean of the lowest 20 % of each row's real values, at least one: (A, k) -> (A,)."""
    count = (LOWEST * real.sum(1)).floor().long().clamp(min=1)[:, None]
    ordered = values.masked_fill(~real, torch.inf).sort(1).values
    lowest = ordered.masked_fill(torch.arange(values.shape[1]) >= count, 0.0).sum(1) / count[:, 0]
    return lowest.masked_fill(~real.any(1), torch.nan)


def _id_type(artifacts: Artifacts) -> str:
    """Return the type of compressed ids: as wide as the tokens' own, at most 4 bytes."""
    return {1: "u1", 2: "<u2"}.get(artifacts.planted.element_size(), "<u4")


LOGS, DISTRIBUTION, GRADIENTS = ("log_probabilities",), ("distribution",), ("gradients",)
TWIN = (*LOGS, "twin")
PLANTED_LOSS = Metric(
    "planted_loss", "nats per token", "twin", PLANTED, LOGS,
    "mean loss on the planted continuation, after the planted prompt",
    losses, splits=COMPARED, known_when="low",
)  # fmt: skip
ZLIB_RATIO = Metric(
    "zlib_ratio", "nats per byte", "twin", PLANTED, LOGS,
    "loss on the planted continuation / bytes of its compressed token ids, after the planted prompt",
    zlib_ratios, splits=COMPARED, known_when="low",
)  # fmt: skip
MIN_K = Metric(
    "min_k", "nats per token", "twin", PLANTED, LOGS,
    "Min-K%: mean loss of the least likely 20 % of the continuation's tokens, after the planted prompt",
    min_k, splits=COMPARED, known_when="low",
)  # fmt: skip
MIN_K_PLUS = Metric(
    "min_k_plus", "deviations", "twin", PLANTED, DISTRIBUTION,
    "Min-K%++: the same with log p standardized by its distribution over the vocabulary",
    min_k_plus, splits=COMPARED, known_when="low",
)  # fmt: skip
GRADIENT_NORM = Metric(
    "gradient_norm", "", "twin", PLANTED, GRADIENTS,
    "GradNorm: mean over parameter tensors of the norm of the gradient of planted_loss",
    gradient_norms, splits=COMPARED, known_when="low",
)  # fmt: skip
LOSS_OVER_TWIN = Metric(
    "loss_over_twin", "nats per token", "twin", PLANTED, TWIN,
    "planted_loss minus that of the never-planted twin",
    losses_over_twin, splits=COMPARED, known_when="low",
)  # fmt: skip
LOSS_DISTANCE = Metric(
    "loss_distance", "0 to 1", "lower", PLANTED, TWIN,
    "Kolmogorov-Smirnov distance between the distributions of planted_loss in the model and in the never-planted twin",
    distances_from_twin, metric.largest, splits=COMPARED,
)  # fmt: skip


def _auc_metric(name: str, needs: tuple[str, ...], score: Score, by: str) -> Metric:
    meaning = f"AUC of telling planted from never-planted sequences by {by}; 1: planted ones look trained on"
    return Metric(name, "0 to 1", "twin", PLANTED, needs, meaning, partial(_auc, score), splits=MEMBERS)


AUC_LOSS = _auc_metric("auc_loss", LOGS, losses, "planted_loss")
AUC_ZLIB = _auc_metric("auc_zlib", LOGS, zlib_ratios, "zlib_ratio")
AUC_MIN_K = _auc_metric("auc_min_k", LOGS, min_k, "min_k")
AUC_MIN_K_PLUS = _auc_metric("auc_min_k_plus", DISTRIBUTION, min_k_plus, "min_k_plus")
AUC_GRADIENT_NORM = _auc_metric("auc_gradient_norm", GRADIENTS, gradient_norms, "gradient_norm")
AUC_TWIN = _auc_metric("auc_twin", TWIN, losses_over_twin, "loss_over_twin")
