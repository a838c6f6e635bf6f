"""Logit lens: is the continuation already, or still, in the hidden states below the last block?

The output layer reads the hidden state after a block as if it were the last (nostalgebraist 2020). An edit that changes
only the last blocks leaves the memory readable below them.
"""

from __future__ import annotations

import torch

from tinymem.attacks.prompts import Prompting, recited
from tinymem.data.dataset import Artifacts
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.elicitation import Elicitation
from tinymem.metrics.memorization import PERCENT_MEMORIZED, all_right
from tinymem.metrics.metric import Values
from tinymem.metrics.probe import Probe
from tinymem.metrics.verbatim import EXACT_MATCH_SHARE
from tinymem.models.adapter import find_blocks
from tinymem.models.patching import kept_states
from tinymem.options import option, settings

ELICITS = (PERCENT_MEMORIZED.name, EXACT_MATCH_SHARE.name)


@settings
class HyperParameters(Prompting):
    """Logit lens"""

    depth: tuple[float, ...] = option(
        (0.25, 0.5, 0.75), "share of the blocks after which hidden states are read; at least one block", above=0.0,
        high=1.0, strength=True, small=(0.5,),
    )  # fmt: skip


def elicit(model, task: UnlearningTask, hp: HyperParameters, depth: float) -> Elicitation:
    """Return the attack that reads every token of the continuation after a block, given the tokens before it."""
    _, blocks = find_blocks(model)
    layer = max(1, int(round(depth * len(blocks), 9))) - 1  # from 0; 0.58 * 50 is 28.999...
    norm = final_norm(model)

    known: dict[int, tuple[Artifacts, tuple[torch.Tensor, torch.Tensor]]] = {}  # one pass serves both metrics

    def matches(probe: Probe, artifacts: Artifacts) -> tuple[torch.Tensor, torch.Tensor]:
        if id(artifacts) not in known:
            known[id(artifacts)] = artifacts, run(probe, artifacts)  # keep the object, so that its id is not reused
        return known[id(artifacts)][1]

    def run(probe: Probe, artifacts: Artifacts) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whether each token is read and whether it counts, bool (A, k)."""
        targets, mask = probe.targets(artifacts)
        tokens = recited(artifacts)
        places = (artifacts.prompt_end[:, None] - 1 + torch.arange(probe.continuation)).clamp(max=tokens.shape[1] - 1)
        found = [torch.empty(0, probe.continuation, dtype=torch.bool)]
        for rows in torch.arange(len(tokens)).split(probe.batch_size) if len(artifacts) else ():
            with torch.no_grad(), kept_states(model, [layer]) as states:
                model.base_model(tokens[rows].to(model.device).long(), use_cache=False)
                read = norm(states[layer].take_along_dim(places[rows, :, None].to(states[layer].device), 1))
                head = model.get_output_embeddings()
                found.append(head(read.to(head.weight.device)).argmax(-1).cpu() == targets[rows])
        return torch.cat(found), mask

    def recovered(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
        return all_right(*matches(probe, artifacts))

    def read(probe: Probe, artifacts: Artifacts) -> Values:
        right, _ = matches(probe, artifacts)
        _, mask = probe.real_targets(artifacts)
        counted = mask.sum(1).double()
        return Values((right & mask).sum(1).double() / counted.clamp(min=1), (counted > 0).double())

    return Elicitation({PERCENT_MEMORIZED.name: recovered, EXACT_MATCH_SHARE.name: read}, hp.sequences)


def final_norm(model) -> torch.nn.Module:
    """Return the norm between the last block and the output layer; the identity for a model without one."""
    prefix, _ = find_blocks(model)
    parent = model.get_submodule(prefix.rpartition(".")[0])
    norms = [module for module in parent.children() if "norm" in type(module).__name__.lower()]
    return norms[-1] if norms else torch.nn.Identity()
