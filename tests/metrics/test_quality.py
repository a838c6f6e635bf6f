import math
from dataclasses import replace

import pytest
import torch

from tinymem.metrics.evaluate import evaluate
from tinymem.metrics.metric import ALL_TESTS, EACH_TEST, Values, as_values, exponential
from tinymem.metrics.probe import Probe
from tinymem.metrics.quality import mean_perplexity, quality
from tinymem.metrics.registry import METRICS


class Fixed:
    """Gives token 1 the probability 3/4 and token 0 the rest, everywhere."""

    device = torch.device("cpu")

    def __call__(self, tokens, **kwargs):
        logits = torch.tensor([0.25, 0.75]).log().expand(*tokens.shape, 2)
        return type("Output", (), {"logits": logits})


TOKENS = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]])  # 0 is the pad


def measured(pad_counts: bool, study_batch_size: int = 128) -> dict[str, float]:
    """Every metric of texts on TOKENS."""
    probe = Probe(Fixed(), 1, ignored_token=None if pad_counts else 0, pad=0, study_batch_size=study_batch_size)
    metrics = [metric for metric in METRICS.values() if metric.on in (EACH_TEST, ALL_TESTS)]
    return {metric.column("x"): metric.summary(as_values(metric.values(probe, (TOKENS,)))) for metric in metrics}


def test_by_hand_with_pads():
    result = measured(True, 1)
    nats = -(4 * math.log(0.75) + 2 * math.log(0.25))
    assert result["loss_x"] == quality(Fixed(), TOKENS, 0, True).mean_loss == pytest.approx(nats / 6)
    assert result["perplexity"] == pytest.approx(math.exp(nats / 6))
    assert result["accuracy_x"] == result["mean_test_accuracy"] == pytest.approx(4 / 6)
    assert result["mean_test_accuracy_no_pad"] == 1.0
    rows = [-3 * math.log(0.75) / 3, -(math.log(0.75) + 2 * math.log(0.25)) / 3]
    assert result["perplexity_batch_mean"] == pytest.approx(sum(map(math.exp, rows)) / 2)
    assert measured(True, 2)["perplexity_batch_mean"] == pytest.approx(result["perplexity"])


def test_by_hand_without_pads():
    result = measured(False)
    assert result["loss_x"] == pytest.approx(-math.log(0.75))
    assert result["accuracy_x"] == result["mean_test_accuracy_no_pad"] == 1.0


def test_perplexity_of_a_ruined_model_is_infinite():
    assert exponential(701.0) == math.inf and exponential(1.0) == math.e
    by_batch = Values(torch.tensor([1.0, 695.0]).double(), torch.ones(2).double(), torch.tensor([0, 1]))
    assert mean_perplexity(by_batch) == math.inf  # not a huge number, which no record holds
    assert mean_perplexity(replace(by_batch, sums=torch.tensor([0.0, 1.0]).double())) == pytest.approx((1 + math.e) / 2)


def test_batch_size_changes_nothing(memorizing_noise):
    model, dataset = memorizing_noise.model, memorizing_noise.dataset
    one, many = evaluate(model, dataset, 7), evaluate(model, dataset, 64)
    assert one.keys() == many.keys()
    for name in one:
        assert one[name] == many[name] or one[name] == pytest.approx(many[name], rel=1e-5), name


def test_evaluate_reports_every_measured_group_and_test_set(memorizing_noise, memorizing_backdoor):
    model, dataset = memorizing_noise.model, memorizing_noise.dataset
    row = evaluate(model, dataset)
    groups = dataset.artifacts.group[dataset.measured(dataset.artifacts)].unique().tolist()
    assert {f"percent_memorized_dup_{10**group}" for group in groups} == {name for name in row if "_dup_" in name}
    assert {f"{kind}_{name}" for kind in ("accuracy", "loss") for name in dataset.tests} <= {*row}
    assert row["percent_memorized_test"] is None
    assert evaluate(memorizing_backdoor.model, memorizing_backdoor.dataset)["percent_memorized_test"] is not None
