"""Empirical Fisher matrix of MLP weights in blocks of consecutive weights, and the diagonal of its inverse.

F = damp * I + 1/m sum of g g' over m sequences, where g is the gradient of one sequence's mean token loss, flattened
as (out, in); the last block of a tensor may be shorter. Sums and inverses are in float64: the float32 rounding of
g g' is as large as the usual damping of 1e-7 once a block's gradients reach a norm of 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from tinymem.errors import UserError
from tinymem.localize.learning import backward, frozen, loss_scale, output_gradients, sequence_weights
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import Weight

PASS = 2**27  # entries of F held at once: 1 GiB; for large models the size of their MLP weights in float32
PIECE = 2**17  # weights whose gradients are formed at once: about 24 bytes per weight and sequence of a microbatch


@dataclass(frozen=True)
class _Piece:
    """Rows of a tensor in whole blocks (the tensor's last may be shorter), and the sum of g g' for each block.

    gram  float64 (blocks, block_size, block_size)
    """

    weight: Weight
    rows: slice
    gram: torch.Tensor

    @property
    def values(self) -> torch.Tensor:
        return self.weight.view()[self.rows]


def inverse_fisher_diagonals(
    model, task: UnlearningTask, tokens: torch.Tensor, weights: list[Weight], block_size: int, damp: float
) -> Iterator[tuple[Weight, slice, torch.Tensor]]:
    """Yield the diagonal of F^-1 for `weights`: a weight, a slice of its rows, and the rows' values in float64.

    Values are shaped like the rows. tokens: (m, T), one gradient per row. If F does not fit into memory at once, there
    are several passes over the tokens.
    """
    for group in groups(weights, block_size):
        pieces = [_Piece(weight, rows, _no_grams(weight.view()[rows], block_size)) for weight, rows in group]
        with frozen(model):
            _add_gradients(model, task, tokens, pieces)
        while pieces:  # pop, so that the memory is free before the next pass
            piece = pieces.pop(0)
            diagonal = inverse_diagonal(piece.gram / len(tokens), damp).flatten()
            yield piece.weight, piece.rows, diagonal[: piece.values.numel()].view(piece.values.shape)


def inverse_diagonal(fisher: torch.Tensor, damp: float) -> torch.Tensor:
    """Return the diagonal of (fisher + damp * I)^-1 for positive semi-definite matrices (blocks, n, n): (blocks, n).

    If the matrix is L L', its inverse is (L^-1)' L^-1. Raise UserError if rounding prevents this factorization.
    """
    identity = torch.eye(fisher.shape[-1], dtype=fisher.dtype, device=fisher.device)
    factor, failed = torch.linalg.cholesky_ex(fisher + damp * identity)
    if failed.any():
        raise UserError(f"--damp {damp:g}: too small for gradients this large, the Fisher matrix cannot be inverted")
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).square().sum(-2)


def groups(weights: list[Weight], block_size: int) -> Iterator[list[tuple[Weight, slice]]]:
    """Divide the rows of the tensors among passes, so that the blocks of one pass fit into memory."""
    room = max(PASS, sum(weight.parameter.numel() for weight in weights) // 2) // block_size
    group: list[tuple[Weight, slice]] = []
    size = 0
    for weight in weights:
        count, fan_in = len(weight.view()), weight.view()[0].numel()
        step = block_size * max(1, PIECE // (block_size * fan_in))
        for first in range(0, count, step):
            rows = slice(first, min(first + step, count))
            entries = (rows.stop - rows.start) * fan_in
            if group and size + entries > room:
                yield group
                group, size = [], 0
            size += entries
            group.append((weight, rows))
    yield group


def _no_grams(values: torch.Tensor, block_size: int) -> torch.Tensor:
    blocks = -(-values.numel() // block_size)
    return torch.zeros(blocks, block_size, block_size, dtype=torch.float64, device=values.device)


def _add_gradients(model, task: UnlearningTask, tokens: torch.Tensor, pieces: list[_Piece]) -> None:
    """Add g g' of every sequence to the pieces, with one forward and backward pass per microbatch."""
    by_module: dict[str, list[_Piece]] = {}
    for piece in pieces:
        by_module.setdefault(piece.weight.name.rpartition(".")[0], []).append(piece)
    weights = sequence_weights(task, tokens)
    scale = loss_scale(model, weights)
    with output_gradients(model, {name: partial(_add, own, tokens.shape[1], scale) for name, own in by_module.items()}):
        backward(model, task, tokens, weights * scale)


def _add(pieces: list[_Piece], length: int, scale: float, inputs: torch.Tensor, outgoing: torch.Tensor) -> None:
    """Add g g' of a microbatch. inputs, outgoing gradients: (rows * length, features), in any shape of that size.

    Entries that are not finite count as 0, so that a sequence whose loss overflows has no influence.
    """
    inputs = inputs.reshape(-1, length, inputs.shape[-1]).float()
    outgoing = outgoing.reshape(-1, length, outgoing.shape[-1]).float() / scale
    for piece in pieces:
        by_position = outgoing[:, :, piece.rows]
        matrix = piece.values.dim() == 2
        gradients = by_position.mT @ inputs if matrix else by_position.sum(1)
        gradients = gradients.flatten(1).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        blocks, size, _ = piece.gram.shape
        padding = blocks * size - gradients.shape[1]
        gradients = torch.nn.functional.pad(gradients, (0, padding)).double().view(-1, blocks, size).transpose(0, 1)
        piece.gram.baddbmm_(gradients.mT, gradients)
