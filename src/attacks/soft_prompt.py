"""Soft prompts: train input vectors to bring out half of the forget set, and try them on the rest.

An attacker who can train can also write the memory into the vectors, so only the excess over the never-planted twin
counts (Schwarzschild et al. 2024, arXiv 2404.15146, and arXiv 2502.15836 on the same trap).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tinymem.attacks.prompts import Prompting, bos_kept, context_of, cut, recited
from tinymem.attacks.relearning import share_of
from tinymem.data.dataset import Artifacts
from tinymem.errors import NotFinite, UserError
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.elicitation import Elicitation
from tinymem.metrics.memorization import PERCENT_MEMORIZED, all_right, exact
from tinymem.metrics.probe import Probe
from tinymem.models.trainable import frozen
from tinymem.options import option, settings
from tinymem.training.objective import rows_of_step

CUMULATIVE = True
ELICITS = (PERCENT_MEMORIZED.name,)


@settings
class HyperParameters(Prompting):
    """Soft prompts"""

    steps: tuple[int, ...] = option(
        (30, 100), "training steps after which the vectors are tried", low=1, strength=True, small=(30,)
    )
    vectors: int = option(8, "input vectors before the prompt", low=1, high=1024)
    share: float = option(0.5, "share of the sequences to forget that the attacker has", above=0.0, high=1.0)
    lr: float = option(0.01, "learning rate of Adam", above=0.0, high=1e3)
    batch_size: int = option(32, "sequences per step; at most those that the attacker has", low=1)


def seen(task: UnlearningTask, hp: HyperParameters) -> torch.Tensor:
    """Return the attacker's share, bool (F,)."""
    return share_of(task, hp.share)


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[int, Elicitation]]:
    """Train the vectors and yield, after each number of steps, the attack with them.

    Raise UserError for more vectors than the model's context has room for, NotFinite for a training that diverges.
    """
    check(model, task, hp)
    probe = Probe(model, task.continuation, task.microbatch, task.ignored_token)
    rows = task.forget.select(seen(task, hp))
    table = model.get_input_embeddings().weight.detach()
    drawn = torch.randint(len(table), (hp.vectors,), generator=task.generator())
    vectors = table[drawn.to(table.device)].float().clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=hp.lr)
    with frozen(model, trainable=()):
        for step in task.watch.over(range(max(hp.steps)), max(hp.steps)):
            batch = rows.select(rows_of_step(len(rows), hp.batch_size, task.seed, step))
            optimizer.zero_grad()
            for part in torch.arange(len(batch)).split(task.microbatch):
                some = batch.select(part)
                logits, targets, mask = _predicted(probe, some, vectors)
                losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
                (losses * mask).sum().backward()
            try:
                optimizer.step()
                finite = bool(vectors.detach().isfinite().all())
            except RuntimeError:  # a step too large for float32
                finite = False
            if not finite:
                raise NotFinite(f"--soft_prompt.lr {hp.lr}: a vector is not finite in step {step + 1}; use a lower one")
            if step + 1 in hp.steps:
                yield step + 1, _with(vectors.detach().clone(), hp)


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError where the context cannot hold the vectors, one token of a prompt and the continuation to read."""
    limit = context_of(model)
    if limit is not None and hp.vectors + task.continuation > limit:
        raise UserError(
            f"--soft_prompt.vectors {hp.vectors}: the model's context of {limit} tokens has room for at most "
            f"{limit - task.continuation} beside the continuation of {task.continuation}"
        )


def _with(vectors: torch.Tensor, hp: HyperParameters) -> Elicitation:
    """Return the attack that succeeds with these vectors before the prompt, or without them."""

    def recovered(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
        found = [torch.empty(0, dtype=torch.float64)]
        for part in torch.arange(len(artifacts)).split(probe.batch_size) if len(artifacts) else ():
            with torch.no_grad():
                logits, targets, mask = _predicted(probe, artifacts.select(part), vectors)
            found.append(all_right(logits.argmax(-1) == targets, mask).cpu())
        return torch.fmax(torch.cat(found), exact(probe, artifacts))

    return Elicitation({PERCENT_MEMORIZED.name: recovered}, hp.sequences)


def _predicted(probe: Probe, artifacts: Artifacts, vectors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return logits (A, k, vocabulary), targets and loss mask (A, k) of the continuations after vectors and prompts.

    If the model's context has no room for the vectors, a prompt loses its first tokens, those after a <bos>.
    """
    model = probe.model
    targets, mask = (values.to(model.device) for values in probe.targets(artifacts))
    limit, count = context_of(model), len(vectors)
    needed = (artifacts.prompt_end + probe.continuation).clamp(max=artifacts.planted.shape[1])
    start = torch.zeros_like(needed) if limit is None else (needed + count - limit).clamp(min=0)
    rows = cut(artifacts, torch.minimum(start, artifacts.prompt_end - 1), bos_kept(model, artifacts, keep_bos=True))
    tokens = recited(rows)
    width = int((rows.prompt_end + probe.continuation).max()) - 1
    width = min(width, tokens.shape[1], *([] if limit is None else [limit - count]))
    embedded = model.get_input_embeddings()(tokens[:, :width].to(model.device).long())
    before = vectors.to(embedded).expand(len(tokens), -1, -1)
    logits = model(inputs_embeds=torch.cat([before, embedded], 1), use_cache=False).logits
    places = rows.prompt_end[:, None] - 1 + count + torch.arange(probe.continuation)
    places = places.clamp(max=logits.shape[1] - 1).to(logits.device)
    return logits.take_along_dim(places[..., None], 1).to(model.device), targets, mask
