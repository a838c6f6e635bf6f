"""Kronecker factors of linear layers (K-FAC; Martens & Grosse 2015, arXiv 1503.05671) on retain or other text.

For a matrix W, (out, in), with input x and output gradient g at every position that predicts a counted token:

    A = E[x x'], (in, in)      G = E[g g'], (out, out)      A (x) G approximates the Fisher matrix of vec(W)

g is the gradient of the summed token losses. Labels are the text's own next tokens (the empirical Fisher matrix) or are
drawn from the model (the true one). vec stacks columns. Biases are left out. Sums are in float32. Only the eigenvectors
and eigenvalues of the factors are kept, because the methods use nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from tinymem.data.text_reader import content_digest, holds_ids
from tinymem.data.token_sets import TokenSet, read_token_set
from tinymem.errors import NotFinite, UserError
from tinymem.localize.curvature.layers import LayerSettings, chosen_weights
from tinymem.localize.learning import frozen, output_gradients
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import Weight
from tinymem.models.checkpointing import checkpointed
from tinymem.models.losses import last_losses, loss_mask, next_token_logits, remedy
from tinymem.models.planned import is_plan
from tinymem.options import option, settings
from tinymem.training.step import all_finite

HELD = 2**28  # entries of factors held at once: 1 GiB; for large models half the size of the chosen matrices
PARTS = 4  # tensors of a basis
FLAG = "--factor_data"


@settings
class FactorSettings(LayerSettings):
    """Kronecker factors"""

    labels: str = option(
        "gold", "labels of the gradients: the text's next tokens, or draws from the model", choices=("gold", "sampled")
    )
    factor_sequences: int = option(
        20000, "retain sequences to compute the factors from; all if there are fewer", low=1, small=(2000,)
    )
    factor_data: str | None = option(
        None,
        "text to compute the factors from, in place of retain sequences: a file of token ids (.safetensors or .pt), or "
        "what --corpus takes",
        unrecorded=True,
        content=partial(content_digest, FLAG),
    )


@dataclass(frozen=True)
class Basis:
    """The eigenvectors of both factors of a matrix (out, in), as columns, and their eigenvalues, float32.

    inputs, input_values     of A: (in, in), (in,)
    outputs, output_values   of G: (out, out), (out,)
    """

    inputs: torch.Tensor
    input_values: torch.Tensor
    outputs: torch.Tensor
    output_values: torch.Tensor

    def rotate(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return a matrix (out, in) in the coordinates of the eigenvectors, float32."""
        return self.outputs.T @ matrix.float() @ self.inputs

    def back(self, rotated: torch.Tensor) -> torch.Tensor:
        """Return the matrix (out, in) with these coordinates: the inverse of `rotate`."""
        return self.outputs @ rotated @ self.inputs.T


def bases(model, task: UnlearningTask, weights: Sequence[Weight], hp: FactorSettings) -> Iterator[tuple[Weight, Basis]]:
    """Yield the chosen matrices with their bases, from the task's cache if they are there.

    All factors come from one pass over the text. If they do not fit into memory at once (HELD), there are several
    passes, and only one group of matrices is held at a time. Raise UserError for fewer counted tokens than a factor has
    rows, NotFinite for factors that are not finite.
    """
    if is_plan(model):  # a plan runs on a few retain sequences, whatever the text
        hp = replace(hp, factor_data=None)
    tokens = factor_text(model, task, hp)
    if not is_plan(model):
        check_enough(task, tokens, weights, hp)
    for group in groups(weights):
        compute_bases = partial(_bases_of, model, task, tokens, group, hp.labels)
        about = {"labels": hp.labels, "sequences": len(tokens), "weights": [weight.name for weight in group]}
        about |= {} if hp.factor_data is None else {"text": TokenSet(tokens, {}).fingerprint}
        tensors = task.cached("kronecker_bases", about, model, compute_bases)
        for number, weight in enumerate(group):
            parts = tensors[PARTS * number : PARTS * (number + 1)]
            yield weight, Basis(*(part.to(weight.parameter.device) for part in parts))


def factor_text(model, task: UnlearningTask, hp: FactorSettings) -> torch.Tensor:
    """Return the sequences to compute the factors from, (m, T)."""
    text = task.retain
    if hp.factor_data is not None:
        size = (text.shape[1], hp.factor_sequences, model.config.get_text_config().vocab_size)
        text = task.reader.rows(FLAG, hp.factor_data, *size)
    order = torch.randperm(len(text), generator=task.generator())
    return text[order[: hp.factor_sequences].sort().values]


def check_factors(model, task: UnlearningTask, hp: FactorSettings) -> None:
    """Raise UserError for a layer that the model does not have, and for less text than the largest factor needs.

    A plan reads token ids but no text, so it checks the most tokens that there can be, pads and <bos> included.
    """
    weights = chosen_weights(model, hp)
    if not is_plan(model):
        check_enough(task, factor_text(model, task, hp), weights, hp)
    elif hp.factor_data is None or holds_ids(hp.factor_data):
        text = task.retain if hp.factor_data is None else read_token_set(hp.factor_data).tokens
        length = task.retain.shape[1]
        most = min(text.numel(), hp.factor_sequences * length)
        _check_count(-(-most // length), most, "at most ", weights, hp)


def check_enough(task: UnlearningTask, tokens: torch.Tensor, weights: Sequence[Weight], hp: FactorSettings) -> None:
    """Raise UserError for text with fewer counted tokens than the largest factor has rows: it would be singular."""
    _check_count(len(tokens), int(loss_mask(tokens, task.ignored_token).sum()), "", weights, hp)


def _check_count(rows: int, counted: int, how: str, weights: Sequence[Weight], hp: FactorSettings) -> None:
    needed = max(max(weight.view().shape) for weight in weights)
    if counted < needed:
        text, ways = "retain sequences", "--max_retain, or the number of retain sequences"
        if hp.factor_data is not None:
            text, ways = f"sequences of {FLAG} {hp.factor_data}", "or give more text"
        raise UserError(
            f"--factor_sequences: {rows} {text} have {how}{counted} tokens, and a factor of {needed} x {needed} needs "
            f"at least {needed}; raise it, {ways}"
        )


def groups(weights: Sequence[Weight]) -> Iterator[list[Weight]]:
    """Divide matrices among passes, so that the factors of one pass fit into memory; at least one matrix each."""
    room = max(HELD, sum(weight.parameter.numel() for weight in weights) // 2)
    group: list[Weight] = []
    size = 0
    for weight in weights:
        entries = sum(side**2 for side in weight.view().shape)
        if group and size + entries > room:
            yield group
            group, size = [], 0
        group.append(weight)
        size += entries
    yield group


def factor_passes(task: UnlearningTask, weights: Sequence[Weight], hp: FactorSettings) -> tuple[int, int]:
    """Return the forward and backward passes of `bases`; drawn labels cost one more forward pass.

    Assume that other text has as many sequences as are asked for.
    """
    rows = min(hp.factor_sequences, len(task.retain)) if hp.factor_data is None else hp.factor_sequences
    once = sum(1 for _ in groups(weights)) * task.passes(rows)
    return once * (1 if hp.labels == "gold" else 2), once


def _bases_of(
    model, task: UnlearningTask, tokens: torch.Tensor, group: list[Weight], labels: str
) -> list[torch.Tensor]:
    """Return the PARTS tensors of each matrix's basis, one matrix after another."""
    sums = collect(model, task, tokens, group, labels)
    if not all_finite(matrix for pair in sums for matrix in pair):
        raise NotFinite(f"its Kronecker factors are not finite numbers; {remedy(model)}")
    parts = []
    while sums:  # pop, so that a factor's memory is free before the next one's eigenvectors are found
        inputs, outputs = sums.pop(0)
        for factor in (inputs, outputs):
            values, vectors = torch.linalg.eigh(factor.double())
            # Contiguous, as after reading from disk; rounding may leave the smallest eigenvalues below 0.
            parts += [vectors.float().contiguous(), values.clamp(min=0).float()]
    return parts


def collect(
    model, task: UnlearningTask, tokens: torch.Tensor, weights: Sequence[Weight], labels: str = "gold"
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return A and G of each matrix, float32, from one pass over tokens (m, T). Leave the model unchanged.

    Drawn labels depend on the task's seed and the position in the text, not on the microbatch.
    """
    sums = [tuple(w.parameter.new_zeros(n, n, dtype=torch.float32) for n in w.view().shape[::-1]) for w in weights]
    mask, draws = loss_mask(tokens, task.ignored_token), torch.empty(len(tokens), 0)
    if labels == "sampled":
        draws = torch.rand(mask.shape, generator=task.generator())
    with frozen(model), checkpointed(model, task.gradient_checkpointing):
        for some, counted, drawn in zip(*(values.split(task.microbatch) for values in (tokens, mask, draws))):
            some = some.to(model.device).long()
            targets = sampled_labels(model, some, drawn) if labels == "sampled" else some[:, 1:]
            _add_gradients(model, some, targets, counted, weights, sums)
    count = max(1, int(mask.sum()))
    return [(inputs / count, outputs / count) for inputs, outputs in sums]


def sampled_labels(model, tokens: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return next tokens drawn from the model's predictions, int64 (rows, T - 1).

    draws: uniform numbers in [0, 1), (rows, T - 1), at which the cumulative distribution is inverted.
    """
    with torch.no_grad():
        reached = next_token_logits(model, tokens).softmax(-1).cumsum(-1)
    return (reached <= draws.to(reached)[..., None]).sum(-1).clamp(max=reached.shape[-1] - 1)


def _add_gradients(model, tokens, targets, counted, weights: Sequence[Weight], sums) -> None:
    """Add x x' and g g' of a microbatch. tokens: (rows, T). targets, counted: (rows, T - 1)."""
    places = counted.flatten().nonzero().flatten()
    seen = {weight.name.rpartition(".")[0]: partial(_add, pair, places) for weight, pair in zip(weights, sums)}
    with output_gradients(model, seen):
        losses = last_losses(model, targets, input_ids=tokens[:, :-1])
        (losses * counted.to(losses.device)).sum().backward()


def _add(pair, places: torch.Tensor, inputs: torch.Tensor, outgoing: torch.Tensor) -> None:
    """Add to A and G. inputs, outgoing gradients: (rows * (T - 1), features), in any shape of that size."""
    for total, values in zip(pair, (inputs, outgoing)):
        rows = values.reshape(-1, values.shape[-1])[places.to(values.device)].float()
        total.addmm_(rows.T, rows)
