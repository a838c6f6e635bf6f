"""Shared parts of the methods that learn by gradient descent: batches, a frozen model, weighted losses, checks.

These methods learn masks or gates while the weights stay fixed, so every function here restores the model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch

from tinymem.errors import NotFinite
from tinymem.localize.task import UnlearningTask
from tinymem.models.checkpointing import checkpointed
from tinymem.models.losses import loss_mask, token_losses
from tinymem.models.precision import autocast
from tinymem.models.trainable import frozen as frozen  # re-exported for the methods
from tinymem.models.trainable import gradient_of
from tinymem.training import step
from tinymem.training.step import rows_per_side

logger = logging.getLogger(__name__)


def endless_batches(tokens: torch.Tensor, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield batches of min(size, rows) sequences without end; each pass over the rows has a new random order.

    A pass may end inside a batch, so that all batches have the same size and none is dominated by a few sequences.
    tokens: (rows, T). Raise ValueError without rows.
    """
    if not len(tokens):
        raise ValueError("no sequences to draw batches from")
    size, order = min(size, len(tokens)), torch.empty(0, dtype=torch.long)
    while True:
        if len(order) < size:
            order = torch.cat([order, torch.randperm(len(tokens), generator=generator)])
        yield tokens[order[:size]]
        order = order[size:]


def unlearn_batches(task: UnlearningTask, size: int, epochs: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Return batches for `epochs` passes over the forget set, each rounded up to whole batches."""
    steps = -(-len(task.forget) // size)
    return islice(endless_batches(task.forget.planted, size, generator), epochs * steps)


def mixed_batches(
    task: UnlearningTask, batch_size: int, unlearn_share: float, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return endless pairs of forget and retain batches. No side is empty; an exhausted set starts again."""
    forget, retain = rows_per_side(batch_size, unlearn_share)
    return zip(endless_batches(task.forget.planted, forget, generator), endless_batches(task.retain, retain, generator))


def natural_batches(
    task: UnlearningTask, batch_size: int, epochs: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Mix both sets, shuffle them every epoch, and yield each batch's forget and retain rows; either may be empty."""
    forget = len(task.forget)
    for _ in range(epochs):
        for rows in torch.randperm(forget + len(task.retain), generator=generator).split(batch_size):
            yield task.forget.planted[rows[rows < forget]], task.retain[rows[rows >= forget] - forget]


def mean_weights(task: UnlearningTask, tokens: torch.Tensor) -> torch.Tensor:
    """Return each token loss's weight in the mean over all tokens, float32 (rows, T - 1); 0 for ignored tokens."""
    mask = loss_mask(tokens, task.ignored_token)
    return mask / mask.sum().clamp(min=1)


def sequence_weights(task: UnlearningTask, tokens: torch.Tensor) -> torch.Tensor:
    """Return each token loss's weight in the mean of its sequence, float32 (rows, T - 1); 0 for ignored tokens."""
    mask = loss_mask(tokens, task.ignored_token)
    return mask / mask.sum(1, keepdim=True).clamp(min=1)


def backward(
    model, task: UnlearningTask, tokens: torch.Tensor, weights: torch.Tensor, precision: str = "float32"
) -> torch.Tensor | float:
    """Add the gradient of sum(weights * token losses) to `.grad`, one microbatch at a time. Return that sum.

    tokens     (rows, T)
    weights    (rows, T - 1), as from `mean_weights`
    precision  of the forward pass, one of PRECISIONS; parameters, losses and gradients keep their own type
    """
    total: torch.Tensor | float = 0.0
    with checkpointed(model, task.gradient_checkpointing):
        for some, weight in zip(tokens.split(task.microbatch), weights.split(task.microbatch)):
            with autocast(model, precision):
                losses = token_losses(model, some)
            part = (losses * weight.to(losses.device)).sum()
            part.backward()
            total = total + part.detach()
    return total


def gradients(
    model,
    task: UnlearningTask,
    tokens: torch.Tensor,
    weights: torch.Tensor,
    parameters: Iterable[torch.nn.Parameter],
    precision: str = "float32",
) -> list[torch.Tensor]:
    """Return the gradient of sum(weights * token losses) for each parameter, shaped as stored; `.grad` stays empty.

    Arguments as for `backward`. After one microbatch a gradient has its parameter's type; sums over several are
    float32, because summing in bfloat16 loses small terms and makes scores depend on the microbatch. In float16 the
    loss is scaled (`loss_scale`); if gradients still overflow, they are computed again at a smaller scale.
    """
    parameters = list(parameters)

    def attempt(scale: float) -> tuple[list[torch.Tensor], torch.Tensor | float]:
        totals: dict[torch.nn.Parameter, torch.Tensor] = {}
        collect = partial(_collect, totals, scale != 1)
        hooks = [parameter.register_post_accumulate_grad_hook(collect) for parameter in parameters]
        try:
            loss = backward(model, task, tokens, weights * scale, precision)
        finally:
            for hook in hooks:
                hook.remove()
        found = [totals[p] if p in totals else torch.zeros_like(p, requires_grad=False) for p in parameters]
        return found, loss / scale

    found, loss = step.scaled(attempt, loss_scale(model, weights))
    task.watch.note(tokens.numel(), loss=loss)
    return found


def gradients_of_sides(
    model,
    task: UnlearningTask,
    loss: step.Loss,
    sides: Sequence[step.Side],
    parameters: Iterable[torch.nn.Parameter],
    precision: str = "float32",
    weights: Sequence[float] | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the gradient of the mean of a loss for each parameter, shaped as stored, and the means, (sides,).

    loss, sides, weights: as in `tinymem.training.step.descend`. Sums are in float32 or finer, and in float16 the loss
    is scaled, as in `gradients`. `.grad` stays empty.
    """
    parameters = list(parameters)
    kinds = [parameter.grad_dtype for parameter in parameters]

    def attempt(scale: float) -> tuple[list[torch.Tensor], torch.Tensor]:
        for parameter in parameters:
            parameter.grad_dtype = torch.promote_types(parameter.dtype, torch.float32)
        with checkpointed(model, task.gradient_checkpointing):
            means = step.backward(model, loss, sides, task.microbatch, precision, weights=weights, factor=scale)
        found = [torch.zeros_like(p, dtype=p.grad_dtype) if p.grad is None else p.grad for p in parameters]
        for parameter, kind in zip(parameters, kinds):
            parameter.grad, parameter.grad_dtype = None, kind
        return found, means

    return step.scaled(attempt, step.loss_scale(model, sides))


@contextmanager
def output_gradients(model, seen: Mapping[str, Callable[[torch.Tensor, torch.Tensor], None]]) -> Iterator[None]:
    """Within the block, call seen[NAME](input, gradient of the output) at every backward pass of the linear layer NAME.

    The layer's parameters may be frozen: backward passes compute gradients of activations only, from the first of these
    layers upwards. The gradient of the layer's matrix is the sum over positions of (output gradient) x (input).
    """

    def watch(own: Callable[[torch.Tensor, torch.Tensor], None], module, inputs: tuple, output: torch.Tensor) -> None:
        output.requires_grad_().register_hook(partial(own, inputs[0].detach()))

    hooks = [model.get_submodule(name).register_forward_hook(partial(watch, own)) for name, own in seen.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _collect(totals: dict[torch.nn.Parameter, torch.Tensor], wide: bool, parameter: torch.nn.Parameter) -> None:
    """Move a parameter's gradient to the totals. wide: in float32 from the first microbatch on."""
    gradient, parameter.grad = gradient_of(parameter), None
    if parameter in totals:
        totals[parameter] = totals[parameter].float().add_(gradient)
    else:
        totals[parameter] = gradient.float() if wide else gradient


def loss_scale(model, weights: torch.Tensor) -> float:
    """Return a power of 2 by which to multiply the weights of token losses, and then to divide the gradients.

    It is 1 except for float16 models. There the gradient of a mean over thousands of tokens would round to 0, so the
    factor brings the largest weight to between 1 and 2.
    """
    largest = weights.abs().max().item() if model.dtype == torch.float16 else 0.0
    return 2.0 ** -math.floor(math.log2(largest)) if largest else 1.0


def kl_note(method: str, budget: float, reached: float) -> dict[str, float]:
    """Return a record's note of the KL that a method has reached; warn if that is less than half of its budget."""
    if reached < budget / 2:
        logger.warning("%s: found no step nearer to the budget: KL %.3g of %g", method, reached, budget)
    return {"kl_reached": reached}


SCALES = ("lr", "weight_decay", "lambda_l1")  # settings whose size may make a method's numbers overflow


def check_scores(tensors: Iterable[torch.Tensor], model, hp: Any = None) -> None:
    """Raise NotFinite if a score is NaN or +infinity, since the ranking would then be arbitrary.

    -infinity is allowed: it marks an entry that a ranking never reaches. hp: the settings of the method.
    """
    if any(bool((tensor.isnan() | tensor.isposinf()).any()) for tensor in tensors):
        raise NotFinite(f"its scores are not finite numbers{_advice(model, hp)}")


def check_steps(done: int, skipped: int, model, hp: Any = None) -> None:
    """Raise NotFinite if every step was skipped for a gradient that is not finite, so that nothing was learned.

    hp: the settings of the method.
    """
    if skipped and not done:
        raise NotFinite(f"none of its {skipped} steps had a finite gradient{_advice(model, hp)}")


def _advice(model, hp: Any) -> str:
    """Return what may help: lower settings of SCALES that are not 0, a type other than float16; or ""."""
    lower = [f"--{name}" for name in SCALES if getattr(hp, name, None)]
    advice = [f"a lower {', '.join(lower)}"] if lower else []
    advice += ["--dtype float32 or bfloat16"] if model.dtype == torch.float16 else []
    return f"; {' or '.join(advice)} may help" if advice else ""
