"""Zero-Out (Chang et al. 2024, arXiv 2311.09060, section 3; the study, section 4.3.1): the loss without a neuron.

Exact: every neuron is removed by itself and what lies above it runs again, many neurons in one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tinymem.localize.estimate import seconds_of
from tinymem.localize.learning import frozen
from tinymem.localize.neuron.hidden import on_neurons, recorded, replayed
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import MLP, find_mlps
from tinymem.models.losses import counted, token_losses
from tinymem.options import check_options, option

CPU_BATCH = 16  # larger batches fall out of a CPU's caches: a fifth slower at TinyMem's sizes


@dataclass(frozen=True)
class HyperParameters:
    """Zero-Out"""

    ratio: tuple[float, ...] = option(
        (0.001, 0.01, 0.05, 0.1), "share of each layer's neurons to drop", above=0.0, below=1.0
    )

    __post_init__ = check_options


def score(model, task: UnlearningTask, hp: HyperParameters, ratio: float) -> list[torch.Tensor]:
    """Mean token loss of the unlearn set with one neuron at 0, minus that loss unchanged, in nats.

    Returns float32 (inner_dim,) a layer. A neuron without its rows of W_in and b_in is 0 under every activation
    function with act(0) = 0, so a score is what dropping that one neuron adds. `ratio` does not matter. The model is
    left as it was.
    """
    mlps, batch_size = find_mlps(model), _batch_size(model, task)
    rises = [torch.zeros(mlp.inner_dim, device=mlp.output.parameter.device) for mlp in mlps]
    with frozen(model), torch.no_grad():
        # A batch is many neurons of one sequence, so that all of it shares what lies below them.
        for sequence in task.unlearn.planted.split(1):
            for mlp, rise in zip(mlps, rises):
                rise += _rise_in_loss(model, mlp, sequence, task.ignored_token, batch_size)
    count = counted(task.unlearn.planted, task.ignored_token).sum().item()
    return [rise / max(count, 1) for rise in rises]


def estimate(model, task: UnlearningTask, hp: HyperParameters) -> float:
    """Seconds that `score` will take.

    Timed on one sequence: its forward pass, and one batch of the first and of the last layer, between which the other
    layers lie, since a batch runs again what lies above its layer. Neurons that are 0 throughout will take less.
    """
    mlps, sequence, batch_size = find_mlps(model), task.unlearn.planted[:1], _batch_size(model, task)

    def layer(mlp: MLP) -> torch.Tensor:
        return _rise_in_loss(model, mlp, sequence, task.ignored_token, batch_size, at_most=batch_size)

    with frozen(model), torch.no_grad():
        forward = seconds_of(lambda: token_losses(model, sequence))
        first, last = (max(0.0, seconds_of(lambda: layer(mlp)) - forward) for mlp in (mlps[0], mlps[-1]))
    batches = sum(-(-mlp.inner_dim // batch_size) for mlp in mlps)
    return len(task.unlearn) * (len(mlps) * forward + batches * (first + last) / 2)


def _batch_size(model, task: UnlearningTask) -> int:
    return min(task.microbatch, CPU_BATCH) if model.device.type == "cpu" else task.microbatch


def _rise_in_loss(
    model, mlp: MLP, sequence: torch.Tensor, ignored_token: int | None, batch_size: int, at_most: int | None = None
) -> torch.Tensor:
    """What zeroing each neuron of a layer adds to the summed loss of one sequence (1, T): (inner_dim,).

    at_most: only the first so many neurons that are not 0 throughout.
    """
    hidden = {}
    with on_neurons([mlp], sequence.shape[1], hidden.__setitem__), recorded(model, mlp.down) as outputs:
        losses = token_losses(model, sequence)
    mask = counted(sequence, ignored_token).to(losses.device)
    neurons = hidden[mlp.layer][0].T.float()
    columns = mlp.output.view().T.float()
    rise = torch.zeros_like(columns[:, 0])
    # A neuron that is 0 at every position changes nothing.
    for chosen in neurons.any(1).nonzero().flatten()[:at_most].split(batch_size):
        without = outputs[mlp.down].float() - neurons[chosen, :, None] * columns[chosen, None, :]
        # Back to the model's own layout: OPT has rows and positions in one dimension.
        without = without.to(outputs[mlp.down].dtype).view(-1, *outputs[mlp.down].shape[1:])
        with replayed(outputs | {mlp.down: without}, len(chosen)):
            changed = token_losses(model, sequence.expand(len(chosen), -1))
        rise[chosen] = ((changed - losses) * mask).sum(1).to(rise.device)
    return rise
