"""Zero-Out (Chang et al. 2024, arXiv 2311.09060, section 3; the study, section 4.3.1): the loss without a neuron.

The result is exact: every neuron is removed in turn and the layers above it run again, many neurons in one batch. The
layers directly after it, up to the next block's queries, keys and values, have a closed form (rank_one.py).
"""

from __future__ import annotations

import torch

from tinymem.localize.learning import frozen
from tinymem.localize.neuron.hidden import on_neurons, recorded, replayed
from tinymem.localize.neuron.rank_one import adds_to_stream, image, readers
from tinymem.localize.ranking import neuron_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import MLP, find_mlps
from tinymem.models.losses import PLAIN_OUTPUT_LAYER, loss_mask, token_losses
from tinymem.models.planned import runs_on
from tinymem.options import settings

CPU_BATCH = 16  # larger batches exceed a CPU's caches: 20 % slower at TinyMem's sizes
ALIAS = "zero"  # the study's flag


@settings
class HyperParameters:
    """Zero-Out"""

    ratio: tuple[float, ...] = neuron_ratio()


def score(model, task: UnlearningTask, hp: HyperParameters) -> list[torch.Tensor]:
    """Return the forget set's mean token loss with one neuron at 0, minus the unchanged loss, in nats.

    float32 (inner_dim,) per layer. A neuron without its rows of W_in and b_in is 0 under every activation function
    with act(0) = 0, so a score is the rise in loss from dropping that one neuron. Leave the model
    unchanged.
    """
    mlps, batch_size = find_mlps(model), _batch_size(model, task.microbatch)
    rises = [torch.zeros(mlp.inner_dim, device=mlp.output.parameter.device) for mlp in mlps]
    adds: dict[int, bool] = {}
    with frozen(model), torch.no_grad():
        # A batch holds many neurons of one sequence, so that all of it shares the layers below.
        for sequence in task.forget.planted.split(1):
            for mlp, rise in zip(mlps, rises):
                rise += _rise_in_loss(model, mlp, sequence, task.ignored_token, batch_size, adds)
    count = loss_mask(task.forget.planted, task.ignored_token).sum().item()
    return [rise / max(count, 1) for rise in rises]


def passes(model, task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return the maximum number of passes: one per sequence and layer, and one per batch of neurons.

    With the closed form (see `rank_one`) the last layer needs no pass for its neurons; each layer needs two more to
    find out whether the closed form holds.
    """
    rows = _batch_size(model, task.microbatch)
    return len(task.forget) * sum(1 + -(-mlp.inner_dim // rows) for mlp in find_mlps(model)), 0


def _batch_size(model, microbatch: int) -> int:
    return min(microbatch, CPU_BATCH) if runs_on(model) == "cpu" else microbatch


def _rise_in_loss(
    model,
    mlp: MLP,
    sequence: torch.Tensor,
    ignored_token: int | None,
    batch_size: int,
    adds: dict[int, bool],
) -> torch.Tensor:
    """Return the rise in one sequence's (1, T) summed loss from zeroing each neuron of a layer: (inner_dim,).

    adds: layer -> whether its output is simply added to the residual stream; filled in with the first sequence
    """
    hidden: dict[int, torch.Tensor] = {}
    watched = on_neurons([mlp], sequence.shape[1], hidden.__setitem__)
    with watched, recorded(model, mlp.down) as outputs, readers(model, mlp) as found:
        losses = token_losses(model, sequence)
    if mlp.layer not in adds:
        adds[mlp.layer] = adds_to_stream(model, mlp, outputs, lambda: token_losses(model, sequence))
    mask = loss_mask(sequence, ignored_token).to(losses.device)
    neurons = hidden[mlp.layer][0].T.float()
    columns, dtype = mlp.output.view().T.float(), outputs[mlp.down].dtype
    # In lower precision the unchanged loss has rounding errors that a closed form would not share.
    closed = adds[mlp.layer] and dtype == torch.float32
    images = {reader.linear: image(reader, neurons, columns) for reader in found if closed}
    # After the last block only the output layer remains.
    head = images.get(model.get_output_embeddings()) if model.config.model_type in PLAIN_OUTPUT_LAYER else None
    rise = torch.zeros_like(columns[:, 0])
    # A neuron that is 0 at every position changes nothing.
    for chosen in neurons.any(1).nonzero().flatten().split(batch_size):
        if head is not None:
            logits = head(chosen)[:, :-1]
            changed = _losses(logits, sequence[:, 1:].to(logits.device).long()).to(losses.device)
        else:
            known: dict[torch.nn.Module, torch.Tensor] = {linear: of(chosen) for linear, of in images.items()}
            without = outputs[mlp.down].float() - neurons[chosen, :, None] * columns[chosen, None, :]
            # Restore the model's own layout: OPT joins rows and positions in one dimension.
            known[mlp.down] = without.to(dtype).view(-1, *outputs[mlp.down].shape[1:])
            with replayed(outputs | known, len(chosen)):
                changed = token_losses(model, sequence.expand(len(chosen), -1))
        rise[chosen] = ((changed - losses) * mask).sum(1).to(rise.device)
    return rise


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return token losses (n, T) of logits (n, T, vocabulary) for targets (1, T)."""
    wanted = logits.gather(-1, targets[..., None].expand(len(logits), -1, 1)).squeeze(-1)
    return logits.logsumexp(-1) - wanted
