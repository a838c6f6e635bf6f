"""What no loss counts, no metric demands: whatever a model says where only pads follow changes no value."""

import pytest
import torch
from known_rows import PAD, artifacts, successor

from tinymem.metrics.metric import PLANTED, as_values
from tinymem.metrics.probe import Probe
from tinymem.metrics.registry import METRICS, find_metric

LAST = 12  # the token before the pads
ROWS = [[0, 1, 2, 3, LAST, PAD, PAD, PAD], [0, 1, 5, 3, LAST, PAD, PAD, PAD], [0, 1, 2, LAST, PAD, PAD, PAD, PAD]]
CLEAN = [[*row[:2], 7, *row[3:]] for row in ROWS]
NAMES = [name for name, metric in METRICS.items() if metric.on == PLANTED and "gradients" not in metric.needs]
NAMES += ["percent_extractable_n10_p50_k3_t100", "percent_memorized_prefix1"]


def probe(behind: torch.Tensor) -> Probe:
    """A model that counts 0 1 2 3 LAST. behind: what it says after LAST and after a pad, logits (vocabulary,)."""
    model = successor()
    model.logits[3] = 5 * torch.nn.functional.one_hot(torch.tensor(LAST), len(behind))
    model.logits[LAST] = model.logits[PAD] = behind
    others = artifacts([[1, 2, 3, 4, LAST, PAD, PAD, PAD], [4, 5, 6, 7, 8, 9, LAST, PAD]], [2, 2])
    return Probe(model, 6, 4, ignored_token=PAD, pad=PAD, non_members=others)


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_the_last_token_changes_no_value(name):
    rows, size = artifacts(ROWS, [2, 2, 2], CLEAN), len(successor().logits)
    metric, found = find_metric(name), []
    for behind in (torch.zeros(size), torch.randn(size, generator=torch.Generator().manual_seed(0)) * 9):
        found.append(as_values(metric.values(probe(behind), rows)))
    assert torch.equal(found[0].sums, found[1].sums) and torch.equal(found[0].weights, found[1].weights)
    assert found[0].weights.any() or "twin" in metric.needs  # here is no twin
