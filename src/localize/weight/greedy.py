"""Greedy (Maini et al. 2023, arXiv 2307.09542; the study, section 4.3.2): one weight after another.

Each pass draws a mixed batch, takes the gradient of a loss that falls as the forget set is forgotten and the retain
set is kept, and zeroes the MLP entry, weight or bias, with the largest w * g: setting w to 0 changes the loss by -w * g
to first order.

By default, the forget set has its share of both sets in the loss and in every batch, at least one sequence. If that is
a few percent, a larger share forgets with fewer entries, but also forgets much of the retain set: see
results/REPRODUCTION.md. The study's batches mix both sets, so many hold no sequence to forget: `--unlearn_share 0`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tinymem.localize.learning import check_steps, frozen, gradients, mixed_batches, natural_batches, sequence_weights
from tinymem.localize.ranking import Masks, WeightScores, how_many, weight_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import MLP, Weight, find_mlps, mlp_weights
from tinymem.models.edit import reversible
from tinymem.options import option, settings
from tinymem.training.step import all_finite

NESTED = True  # each weight is chosen after all earlier ones were zeroed

PATIENCE = 20  # passes: if none of the first has a finite gradient, none of the later thousands will


@settings
class HyperParameters:
    """Greedy"""

    ratio: tuple[float, ...] = weight_ratio(
        (1e-5,), "share of all parameters to drop, one by one", grid=(1e-5,), small=(0.001, 0.01)
    )
    batch_size: int = option(64, "sequences per pass", low=2)
    unlearn_share: float | None = option(
        None, "share of each batch taken from the forget set; default: its share of both sets; 0: mix both sets, as in "
        "the study's code", low=0.0, below=1.0,
    )  # fmt: skip
    greedy_k: int = option(1, "entries zeroed per backward pass; 1 is exact", low=1, small=(80,))


def score(model, task: UnlearningTask, hp: HyperParameters) -> WeightScores:
    """Return scores for the order in which MLP entries are zeroed, up to the largest ratio. Leave the model unchanged.

    The r-th entry scores -(r - 1/2) / parameters: minus the share of the model zeroed once the entry is half gone, so
    that rounding cannot carry it across a ratio. Entries that are never reached score -inf. A pass without a finite
    gradient zeroes nothing; raise NotFinite if the first PATIENCE passes all have none.
    """
    weights = mlp_weights(find_mlps(model))
    scores = {name: torch.full_like(weight.view(), -torch.inf, dtype=torch.float32) for name, weight in weights.items()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    count, removed = how_many(max(hp.ratio), parameters), 0
    share = _unlearn_share(hp, len(task.forget), len(task.retain))
    done = skipped = 0
    batches = _batches(task, hp, share, -(-count // hp.greedy_k))
    with frozen(model, [weight.parameter for weight in weights.values()]), reversible() as changes:
        passes = range(0, count, hp.greedy_k)
        for _, sides in task.watch.over(zip(passes, batches), len(passes)):
            slopes = _gradients(model, task, share, *sides, weights)
            lost = not all_finite(slopes) and all(slope.isfinite().logical_not_().all() for slope in slopes)
            done, skipped = done + (not lost), skipped + lost
            if skipped == PATIENCE and not done:
                break
            for name, place in _best(weights, slopes, scores, min(hp.greedy_k, count - removed)):
                changes.zero(weights[name].view(), place)
                removed += 1
                scores[name][place] = -(removed - 0.5) / parameters
    check_steps(done, skipped, model)
    return scores


def steps(model, task: UnlearningTask, hp: HyperParameters) -> int:
    """Return the number of batches: one per `greedy_k` entries."""
    return -(-how_many(max(hp.ratio), model.num_parameters()) // hp.greedy_k)


def drop(mlps: list[MLP], scores: WeightScores, ratio: float) -> Masks:
    """Return the first ratio * parameters entries that were zeroed."""
    return {name: tensor > -ratio for name, tensor in scores.items()}


def _unlearn_share(hp: HyperParameters, forget: int, retain: int) -> float:
    """Return the share of a batch taken from the forget set: the flag's value, or the set's share of both sets."""
    return forget / (forget + retain) if hp.unlearn_share is None else hp.unlearn_share


def _batches(
    task: UnlearningTask, hp: HyperParameters, share: float, passes: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches (forget, retain), `passes` or more; with a share of 0 a side may be empty."""
    if share:
        return mixed_batches(task, hp.batch_size, share, task.generator())
    in_an_epoch = -(-(len(task.forget) + len(task.retain)) // hp.batch_size)
    return natural_batches(task, hp.batch_size, -(-passes // in_an_epoch), task.generator())


def _gradients(
    model,
    task: UnlearningTask,
    unlearn_share: float,
    forget: torch.Tensor,
    retain: torch.Tensor,
    weights: dict[str, Weight],
) -> list[torch.Tensor]:
    """Return the gradient (out, in) of mean(-label * sequence loss) over a mixture with this share of forget sequences.

    Each side is weighted by its share of the mixture, however its number of sequences was rounded; with a share of 0,
    by its share of the batch.
    """
    unlearn_share = unlearn_share or len(forget) / (len(forget) + len(retain))
    forget_weight, retain_weight = unlearn_share / max(len(forget), 1), (1 - unlearn_share) / max(len(retain), 1)
    signs = torch.tensor([-forget_weight] * len(forget) + [retain_weight] * len(retain))
    tokens = torch.cat([forget, retain])
    factors = signs[:, None] * sequence_weights(task, tokens)
    found = gradients(model, task, tokens, factors, (weight.parameter for weight in weights.values()))
    return [weight.view(gradient) for weight, gradient in zip(weights.values(), found)]


def _best(
    weights: dict[str, Weight], slopes: list[torch.Tensor], scores: WeightScores, k: int
) -> list[tuple[str, tuple[torch.Tensor, ...]]]:
    """Return the k entries (tensor, place) with the largest finite w * g, largest first, ties by tensor and index."""
    names: list[str] = []
    gains, indices = [], []
    for (name, weight), slope in zip(weights.items(), slopes):
        gain = weight.view().float() * slope
        gain = gain.masked_fill_((scores[name] > -torch.inf) | ~gain.isfinite(), -torch.inf).flatten()
        best = largest(gain, k)
        names += [name] * len(best)
        gains.append(gain[best].cpu())
        indices.append(best.cpu())
    values, places = torch.cat(gains), torch.cat(indices)
    chosen = [i for i in largest(values, k).tolist() if values[i] > -torch.inf]
    return [(names[i], torch.unravel_index(places[i : i + 1], scores[names[i]].shape)) for i in chosen]


def largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return the indices of a flat tensor's k largest entries, largest first; ties by lowest index, unlike topk."""
    threshold = values.topk(min(k, values.numel())).values[-1]
    candidates = (values >= threshold).nonzero().flatten()
    return candidates[values[candidates].sort(descending=True, stable=True).indices[:k]]
