"""Selective Synaptic Dampening (Foster et al. 2024, arXiv 2308.07707): shrink weights that only the forget set needs.

The importance I of a weight is the mean over sequences of the squared gradient of the sequence's mean token loss: the
diagonal of the empirical Fisher matrix. Where I_F > alpha I_D, with D all sequences, a weight is multiplied by
min((lambda I_D / I_F)^exponent, 1). The source squares the gradient of a batch, which depends on the batch's size; here
each sequence is a batch of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import torch

from tinymem.data.memories import among
from tinymem.errors import NotFinite
from tinymem.localize.learning import backward, frozen, loss_scale, output_gradients, sequence_weights
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import Weight, find_mlps, linear_weights, mlp_weights, weight_of
from tinymem.models.edit import Weights
from tinymem.models.losses import remedy
from tinymem.models.planned import is_plan
from tinymem.options import option, settings
from tinymem.training.step import all_finite

logger = logging.getLogger(__name__)

PIECE = 2**24  # entries of the gradients of single sequences formed at once: 64 MB


@settings
class HyperParameters:
    """Selective Synaptic Dampening"""

    alpha: tuple[float, ...] = option(
        (3.0, 10.0, 30.0), "dampen weights this many times more important to the forget set than to all sequences; "
        "an alpha of all sequences / sequences to forget, or more, edits nothing",
        above=0.0, strength=True, grid=(1.0, 3.0, 10.0, 30.0, 100.0), small=(3.0, 10.0),
    )  # fmt: skip
    lam: float = option(1.0, "lambda: factor in what remains of a dampened weight", above=0.0)
    exponent: float = option(1.0, "exponent in what remains of a dampened weight", above=0.0)
    edited: str = option(
        "mlp", "weights and biases to edit: those of MLPs, or also those of attention", choices=("mlp", "linear")
    )


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[float, Weights]]:
    """Yield the edited weights at each alpha. Memory: the importances, two float32 tensors per edited weight."""
    _check_retain(task)
    weights = edited_weights(model, hp.edited)
    planted, retain = task.forget.planted, task.retain
    if not is_plan(model):  # the rows of a plan are all alike
        retain = _others(task)
    importances_of = partial(_cached, model, task, weights, edited=hp.edited)
    to_forget = importances_of(planted, "forget")
    # If the sets overlap (--retain all), each sequence counts once, so importances of the whole retain set are no use.
    rest = importances_of(retain, "retain" if len(retain) == len(task.retain) else "others") if len(retain) else {}
    for name, values in rest.items():
        values.mul_(len(retain)).add_(to_forget[name], alpha=len(planted)).div_(len(planted) + len(retain))
    to_all = rest or to_forget
    for alpha in hp.alpha:
        yield alpha, Weights(
            {w.name: w.view(dampened(w.view(), to_forget[w.name], to_all[w.name], alpha, hp)) for w in weights}
        )


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError for a task without a retain set. Warn of each alpha that edits nothing.

    F of F + R sequences are to be forgotten, so I_D is at least I_F * F / (F + R).
    """
    _check_retain(task)
    forget, retain = len(task.forget), len(_others(task))
    idle = [f"{alpha:g}" for alpha in hp.alpha if forget * alpha >= forget + retain]
    if idle:
        logger.warning(
            "ssd: --alpha %s edits nothing with %d sequences to forget and %d others; only an alpha below %.4g can",
            " ".join(idle), forget, retain, (forget + retain) / forget,
        )  # fmt: skip


def _check_retain(task: UnlearningTask) -> None:
    task.check_retain("--localization_method ssd")


def _others(task: UnlearningTask) -> torch.Tensor:
    """Return the rows to retain that are not to be forgotten, (R, T): `--retain all` has both kinds."""
    return task.retain[~among(task.retain, task.forget.planted)]


def passes(model, task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return the passes: one over all sequences."""
    count = task.passes(len(task.forget)) + task.passes(len(task.retain))
    return count, count


def edited_weights(model, edited: str) -> list[Weight]:
    """Return the weights and biases of MLPs, or of every linear layer but the output layer, which is often tied."""
    if edited == "mlp":
        return list(mlp_weights(find_mlps(model)).values())
    head, known = model.get_output_embeddings(), dict(model.named_parameters())
    names = [name.rpartition(".")[0] for name in linear_weights(model)]
    modules = [name for name in names if model.get_submodule(name) is not head]
    both = (f"{name}.{kind}" for name in modules for kind in ("weight", "bias"))
    return [weight_of(model, name) for name in both if name in known]


def dampened(values, to_forget, to_all, alpha: float, hp: HyperParameters) -> torch.Tensor:
    """Return the dampened values of a weight, in its type. to_forget, to_all: importances of the same shape."""
    remains = (hp.lam * to_all / to_forget).pow(hp.exponent).clamp(max=1)
    return torch.where(to_forget > alpha * to_all, (values * remains).to(values.dtype), values)


def importances(model, task: UnlearningTask, tokens: torch.Tensor, weights: list[Weight]) -> dict[str, torch.Tensor]:
    """Return the mean over sequences of the squared gradient of the sequence's mean token loss, float32.

    tokens: (m, T). Matrices are (out, in). Raise NotFinite if an importance is not finite.
    One pass over a microbatch gives the gradients of all its sequences (see `output_gradients`).
    """
    totals = {weight.name: torch.zeros_like(weight.view(), dtype=torch.float32) for weight in weights}
    by_module: dict[str, list[torch.Tensor]] = {}
    for name, total in totals.items():
        by_module.setdefault(name.rpartition(".")[0], []).append(total)
    loss_weights = sequence_weights(task, tokens)
    scale = loss_scale(model, loss_weights)
    seen = {name: partial(_add, own, tokens.shape[1], scale) for name, own in by_module.items()}
    with frozen(model), output_gradients(model, seen):
        backward(model, task, tokens, loss_weights * scale)
    if not all_finite(totals.values()):
        raise NotFinite(f"its gradients are not finite numbers; {remedy(model)}")
    return {name: total.div_(len(tokens)) for name, total in totals.items()}


def _add(totals: list[torch.Tensor], length: int, scale: float, inputs: torch.Tensor, outgoing: torch.Tensor) -> None:
    """Add a microbatch's squared gradients. inputs, outgoing gradients: (rows * length, features), in any shape."""
    inputs = inputs.reshape(-1, length, inputs.shape[-1])
    outgoing = outgoing.reshape(-1, length, outgoing.shape[-1])
    for total in totals:
        size = max(1, PIECE // total.numel())
        for x, g in zip(inputs.split(size), outgoing.split(size)):
            g = g.float() / scale
            gradients = g.mT @ x.float() if total.dim() == 2 else g.sum(1)
            total += gradients.square_().sum(0)


def _cached(
    model, task: UnlearningTask, weights: list[Weight], tokens: torch.Tensor, rows: str, edited: str
) -> dict[str, torch.Tensor]:
    """Return the importances of tokens (m, T), from the cache if they are there. rows: the name of these tokens."""
    compute = partial(importances, model, task, tokens, weights)
    tensors = task.cached("importances", {"rows": rows, "edited": edited}, model, compute)
    return {weight.name: tensors[weight.name].to(weight.parameter.device) for weight in weights}
