"""Shared by Slimming and Hard Concrete: a gate on every neuron, trained to close unless the forget set needs it.

Chang et al. 2024 (arXiv 2311.09060, section 3) train sparse gates on one memorized sequence to find the neurons that it
needs. Neurons whose gates stay open are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch

from tinymem.localize.learning import backward, check_steps, frozen, loss_scale, mean_weights, unlearn_batches
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import MLP
from tinymem.models.trainable import gradient_of
from tinymem.training.step import all_finite

if TYPE_CHECKING:
    from tinymem.localize.neuron import hard_concrete, slimming

    GateSettings: TypeAlias = slimming.HyperParameters | hard_concrete.HyperParameters


@contextmanager
def gated(mlps: list[MLP], gates: Sequence[torch.Tensor]) -> Iterator[None]:
    """Multiply every neuron's activation by its gate within the block. gates: one tensor (inner_dim,) per layer."""

    def multiply_by(gate: torch.Tensor) -> Callable:
        return lambda module, inputs: (inputs[0] * gate.to(inputs[0]), *inputs[1:])

    hooks = [mlp.down.register_forward_pre_hook(multiply_by(gate)) for mlp, gate in zip(mlps, gates, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the tensors of all layers as one flat tensor on the first one's device, differentiable."""
    return torch.cat([tensor.flatten().to(tensors[0].device) for tensor in tensors])


def learn_gates(
    model,
    task: UnlearningTask,
    mlps: list[MLP],
    parameters: list[torch.Tensor],
    gates: Callable[[], list[torch.Tensor]],
    openness: Callable[[], torch.Tensor],
    hp: GateSettings,
    generator: torch.Generator,
) -> None:
    """Minimize L_u + lambda_l1 * openness with Adam on `parameters`, until openness falls below stop_loss.

    parameters   float32 tensors that require gradients; changed in place
    gates()      the gates of one step, (inner_dim,) per layer, as a function of the parameters. Called once per step:
                 all sequences of a batch share the gates, so that microbatches add up to the same gradient
    openness()   mean openness of all gates, a scalar

    Skip a step whose gradient is not finite; raise NotFinite if all were skipped. Leave the model unchanged.
    """
    optimizer = torch.optim.Adam(parameters, lr=hp.lr)
    done = skipped = 0
    with frozen(model):
        batches = unlearn_batches(task, hp.batch_size, hp.epochs, generator)
        for tokens in task.watch.over(batches, steps(model, task, hp)):
            current, penalty = gates(), openness()
            if penalty.item() < hp.stop_loss:
                break
            # Microbatches add up in these copies, so that the graph behind the gates is walked only once.
            leaves = [gate.detach().requires_grad_() for gate in current]
            weights = mean_weights(task, tokens)
            scale = loss_scale(model, weights)
            with gated(mlps, leaves):
                loss = backward(model, task, tokens, weights * scale)
            task.watch.note(tokens.numel(), loss=loss / scale, open=penalty.detach())
            optimizer.zero_grad()
            slopes = [gradient_of(leaf) / scale for leaf in leaves]
            torch.autograd.backward([*current, hp.lambda_l1 * penalty], [*slopes, None])
            if all_finite(map(gradient_of, parameters)):
                optimizer.step()
                done += 1
            else:
                skipped += 1
    check_steps(done, skipped, model, hp)


def steps(model, task: UnlearningTask, hp: GateSettings) -> int:
    """Return the maximum number of steps of `learn_gates`."""
    return hp.epochs * -(-len(task.forget) // hp.batch_size)
