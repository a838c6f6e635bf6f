"""One step of gradient descent: the inputs of a loss, and its gradient summed over microbatches.

A loss is a plain function of the model and the sides of a batch, such as the forget and retain rows. It returns one
value per predicted token or per row, and a step minimizes their mean. Microbatches therefore give the same gradient as
the whole batch, whatever the loss does within a row.

    def gradient_difference(model, forget, retain):
        return -forget.losses(model), retain.losses(model)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import TypeVar

import torch

from tinymem.models.checkpointing import checkpointed
from tinymem.models.losses import loss_mask, next_token_logits, token_losses
from tinymem.models.patching import kept_states
from tinymem.models.precision import autocast
from tinymem.regularizers.protocol import Regularizer
from tinymem.training.processes import ALONE, Processes

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Side:
    """R sequences of T tokens of one kind: a whole set, or its part of a batch or microbatch.

    tokens   integer (R, T)
    ids      int64 (R,): each sequence's row in the whole set; in training, its example id
    mask     the loss mask, bool (R, T - 1): the predicted tokens that count
    whole    the set from which the rows were selected, or None
    twin     the clean twins of the rows, with ids and loss mask of their own, or None
    """

    tokens: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    whole: Side | None = None
    twin: Side | None = None

    @classmethod
    def of(
        cls,
        tokens: torch.Tensor,
        ignored_token: int | None = None,
        prompt_end: torch.Tensor | None = None,
        twin: Side | None = None,
    ) -> Side:
        """Return a whole set in which every predicted token counts, except `ignored_token` and the tokens of prompts.

        prompt_end: int64 (R,), the number of tokens of each row's prompt; None: prompts count too.
        """
        mask = loss_mask(tokens, ignored_token)
        if prompt_end is not None:
            mask &= torch.arange(1, tokens.shape[1]) >= prompt_end[:, None]
        return cls(tokens, torch.arange(len(tokens)), mask, twin=twin)

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, ids: torch.Tensor) -> Side:
        """Return these rows of a whole set, on the device of `ids`."""
        rows = ids.to(self.tokens.device)
        tokens, mask = self.tokens[rows].to(ids.device), self.mask[rows].to(ids.device)
        return Side(tokens, ids, mask, whole=self, twin=self.twin and self.twin.select(ids))

    def to(self, device: torch.device) -> Side:
        """Return the same rows on a device."""
        tokens, ids, mask = (values.to(device) for values in (self.tokens, self.ids, self.mask))
        return replace(self, tokens=tokens, ids=ids, mask=mask, twin=self.twin and self.twin.to(device))

    def split(self, size: int) -> list[Side]:
        """Return the rows as parts of at most `size` rows."""
        parts = zip(*(values.split(size) for values in (self.tokens, self.ids, self.mask)))
        twins = repeat(None) if self.twin is None else self.twin.split(size)
        return [replace(self, tokens=t, ids=i, mask=m, twin=twin) for (t, i, m), twin in zip(parts, twins)]

    def losses(self, model) -> torch.Tensor:
        """Return the loss of every predicted token in nats, (R, T - 1), in float32 or finer. Differentiable."""
        return token_losses(model, self.tokens)

    def logits(self, model) -> torch.Tensor:
        """Return the logits of every predicted token, (R, T - 1, vocabulary), in float32 or finer. Differentiable."""
        return next_token_logits(model, self.tokens)

    def activations(self, model, layer: int) -> torch.Tensor:
        """Return the outputs of block `layer` (from 0) at the positions that predict a token, (R, T - 1, width), in
        float32 or finer. Differentiable.
        """
        with kept_states(model, [layer]) as states:
            model.base_model(self.tokens.to(model.device).long(), use_cache=False)
        hidden = states[layer][:, :-1].to(model.device)
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))

    def row_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over each row's counted tokens, (R,). values: (R, T - 1)."""
        return (values * self.mask).sum(1)

    def row_means(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over each row's counted tokens, (R,); 0 for a row without any. values: (R, T - 1)."""
        return self.row_sums(values) / self.lengths

    @property
    def lengths(self) -> torch.Tensor:
        """The number of each row's counted tokens, int64 (R,); 1 for a row without any."""
        return self.mask.sum(1).clamp(min=1)

    @property
    def targets(self) -> torch.Tensor:
        """The predicted tokens, int64 (R, T - 1)."""
        return self.tokens[:, 1:].long()


# loss(model, *sides) -> values of the first side, or a tuple with one tensor per side. A step minimizes the (weighted)
# sum of their means: over the batch's counted tokens for values (R, T - 1), over its rows for values (R,).
Loss = Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]  # a string: evaluating it would load torch


def next_token_loss(model, side: Side) -> torch.Tensor:
    """Return the loss of plain training, planting and fine-tuning."""
    return side.losses(model)


def descend(
    model,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    sides: Sequence[Side],
    microbatch: int,
    precision: str = "float32",
    gradient_checkpointing: bool = False,
    regularizers: Sequence[Regularizer] = (),
    weights: Sequence[float] | None = None,
    processes: Processes = ALONE,
) -> list[float]:
    """Do one optimizer step on the mean of a loss. Return one mean per side, without weights and regularizers.

    microbatch              rows per call of the loss, all sides together (at least one of each)
    precision               of the forward pass, one of PRECISIONS
    gradient_checkpointing  run blocks again in the backward pass; the model must be in evaluation mode
    regularizers            hooks; hooks on sequences are called only if the batch has a single side. To train only some
                            entries of the weights, zero the gradients of the others in `after_backward` (with
                            weight decay 0 Adam then leaves them unchanged)
    weights                 weights of the sides' means in the minimized sum; None: 1 for each
    processes               the processes that do one step together, each with its rows of every side

    In float16 the loss is scaled (`scaled`), since most of its gradient would otherwise round to 0.
    """
    hooks = regularizers if len(sides) == 1 else ()

    def attempt(scale: float) -> tuple[list[torch.Tensor], torch.Tensor]:
        model.zero_grad(set_to_none=True)
        means = backward(model, loss, sides, microbatch, precision, hooks, weights, processes, scale)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        processes.add_up([means, *gradients])
        return gradients, means

    with checkpointed(model, gradient_checkpointing):
        _, means = scaled(attempt, loss_scale(model, sides), processes.any)
    for regularizer in regularizers:
        regularizer.after_backward()
    optimizer.step()
    return means.tolist()


def scaled(
    attempt: Callable[[float], tuple[list[torch.Tensor], T]], scale: float, anywhere: Callable[[bool], bool] = bool
) -> tuple[list[torch.Tensor], T]:
    """Return a loss's gradients and what came with them. `attempt(scale)` gives those of `scale` times the loss.

    If they overflow at a scale above 1, they are computed again at a smaller scale. They are divided by the scale in
    place. anywhere(flag): whether a flag is set in any of the processes that do one step.
    """
    gradients, others = attempt(scale)
    while scale > 1 and anywhere(not all_finite(gradients)):
        del gradients  # memory for the next ones
        scale = max(1.0, scale / 16)
        gradients, others = attempt(scale)
    for gradient in gradients if scale != 1 else ():
        gradient.div_(scale)
    return gradients, others


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether all tensors are free of NaN and infinity."""
    # The double negation makes a plan's fake tensors count as finite: their bools are all False.
    return not any(bool(tensor.isfinite().logical_not_().any()) for tensor in tensors)


def backward(
    model,
    loss: Loss,
    sides: Sequence[Side],
    microbatch: int,
    precision: str = "float32",
    hooks: Sequence[Regularizer] = (),
    weights: Sequence[float] | None = None,
    processes: Processes = ALONE,
    factor: float = 1.0,
) -> torch.Tensor:
    """Add the gradient of the mean of a loss, one microbatch at a time. Return the means, (sides,), as in `descend`.

    processes: as in `descend`; gradient and means are this process's terms of the sums. factor: scales only the
    gradient.
    """
    for hook in hooks:
        sides = [replace(side, mask=hook.positions(side.tokens, side.mask)) for side in sides]
    scales = [(1.0 / len(side), 1.0 / side.mask.sum().clamp(min=1)) for side in sides]  # per row, per token
    totals = [torch.zeros((), device=side.tokens.device) for side in sides]
    sides = [processes.part(side) for side in sides]
    for parts, needed in microbatches(sides, microbatch):
        for hook in hooks:
            hook.before_forward(parts[0].ids)
        with autocast(model, precision):
            values = loss(model, *parts)
        terms = []
        for i, value in enumerate(values if isinstance(values, tuple) else (values,)):
            part, scale = parts[i], scales[i][_level(value, parts[i])]
            if needed[i]:
                totals[i] += _sum(value.detach(), part) * scale
                for hook in hooks:
                    value = hook.token_losses(value, part.mask)
                terms.append(_sum(value, part) * (scale if weights is None else weights[i] * scale))
        if terms:  # a loss may return no values for the side that needs this part
            total = sum(terms[1:], terms[0])
            (total if factor == 1 else factor * total).backward()
    return torch.stack(totals)


def loss_scale(model, sides: Sequence[Side]) -> float:
    """Return a power of 2 that brings the gradient of a token's loss to about 1 for a float16 model; 1 for others."""
    if model.dtype != torch.float16:
        return 1.0
    return 2.0 ** math.floor(math.log2(max(side.mask.numel() for side in sides)))


def microbatches(sides: Sequence[Side], rows: int) -> Iterator[tuple[tuple[Side, ...], tuple[bool, ...]]]:
    """Yield matching parts of all sides, and whether each is needed.

    Every side gets its share of `rows`. Since models cannot run on zero rows, a side without remaining rows repeats its
    first part, whose loss is not needed.
    """
    whole = sum(map(len, sides))
    split = [side.split(max(1, rows * len(side) // whole)) for side in sides]
    padded = [chain(zip(parts, repeat(True)), repeat((parts[0], False))) for parts in split]
    for pairs in islice(zip(*padded), max(map(len, split))):
        parts, needed = zip(*pairs)
        yield parts, needed


def rows_per_side(batch_size: int, forget_share: float) -> tuple[int, int]:
    """Return the numbers of forget and retain rows, at least one of each, in a batch of at least two."""
    forget = min(max(1, round(forget_share * batch_size)), batch_size - 1)
    return forget, batch_size - forget


def _level(values: torch.Tensor, part: Side) -> int:
    """Return 0 for values per row, 1 for values per token."""
    if values.shape not in (part.mask.shape[:1], part.mask.shape):
        raise ValueError(f"a loss returned values {tuple(values.shape)}, not one per row or token of {len(part)} rows")
    return values.dim() - 1


def _sum(values: torch.Tensor, part: Side) -> torch.Tensor:
    return (values * part.mask).sum() if values.dim() == 2 else values.sum()
