import itertools
import logging
import math

import pytest
import torch
from known_rows import Table, artifacts, known_in_part
from tiny import new_model

from tinymem.errors import UserError
from tinymem.metrics import extraction
from tinymem.metrics.extraction import curve, log_probabilities, needed, percent_extractable, share, variant
from tinymem.metrics.metric import Values
from tinymem.metrics.probe import Probe


def logs(*chances: float) -> torch.Tensor:
    return torch.tensor(chances, dtype=torch.float64).log()


def test_samples_needed_by_hand():
    # 1 - (1/2)^1 = 1/2; 1 - (1/2)^2 = 3/4; 1 - (9/10)^7 = 0.52 and 1 - (9/10)^6 = 0.47.
    assert needed(logs(1, 0.5, 0.1, 0), 0.5).tolist() == [1, 1, 7, math.inf]
    assert needed(logs(0.5), 0.75).tolist() == [2] and needed(logs(0.75), 0.9).tolist() == [2]
    assert needed(torch.tensor([-400.0, -700.0]), 0.5).tolist() == [
        pytest.approx(math.log(2) * math.exp(400)),
        math.inf,
    ]
    # A p_z of 1 - 1e-17 is 1 as a double, but its log is not 0: the chance to miss it is known to the last digit.
    assert needed(torch.tensor([-1e-17], dtype=torch.float64), 1 - 1e-15).tolist() == [1]


def test_share_and_curve():
    log_p = logs(1, 0.5, 0.1, 0)
    assert curve(log_p, (1, 6, 7, 10**9)) == [0.5, 0.5, 0.75, 0.75]
    assert share(log_p, 1, 0.75) == 0.25 and share(log_p, 2, 0.75) == 0.5
    assert share(log_p[:0], 1, 0.5) is None and curve(log_p[:0], (1, 2)) == [None, None]


def test_the_share_against_its_definition():
    chances = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    for n, p in itertools.product((1, 3, 10, 100), (0.1, 0.5, 0.9)):
        assert share(chances.log(), n, p) == (1 - (1 - chances) ** n >= p).double().mean().item()
    rising = curve(chances.log(), range(1, 50))
    assert rising == sorted(rising)
    assert all(share(chances.log(), 10, p) >= share(chances.log(), 10, p + 0.1) for p in (0.1, 0.5, 0.8))


def test_a_distribution_by_hand():
    # After 0: tokens 0, 1, 2 with 1/2, 1/4, 1/4; after 1: 0 alone.
    table = Table(torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).log().clamp(min=-1e9))
    rows = artifacts([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]], [1] * 4)
    found = log_probabilities(Probe(table, 2), rows)
    assert found.sums.exp().tolist() == pytest.approx([1 / 4, 1 / 8, 1 / 4, 0])
    assert percent_extractable(found, 2, 0.4) == 50 and percent_extractable(found, 100, 0.5) == 75
    assert extraction.median_samples(found) == 4.5  # of 3, 6, 3 and never
    half = log_probabilities(Probe(table, 1), rows, top_k=2, temperature=0.5)  # 1/4 and 1/16 of 5/16
    assert half.sums[:3].exp().tolist() == pytest.approx([4 / 5, 4 / 5, 1 / 5])


def test_half_of_the_rows_that_never_come_out():
    assert extraction.median_samples(Values(logs(1, 0, 0), torch.ones(3))) == math.inf
    assert extraction.median_samples(Values(logs(1, 0, 0), torch.tensor([1.0, 0, 0]))) == 1
    nothing = Values(torch.zeros(2).double(), torch.zeros(2))
    assert extraction.median_samples(nothing) is None and percent_extractable(nothing) is None


@pytest.mark.parametrize("top_k, temperature", [(40, 1.0), (3, 1.0), (5, 0.7)])
def test_one_pass_against_stepwise_sampling_probabilities(top_k, temperature):
    probe, rows = known_in_part()
    probe.ignored_token = 13
    expected = []
    for row, clean, end in zip(rows.planted.tolist(), rows.clean.tolist(), rows.prompt_end.tolist()):
        tokens, total = clean[:end], 0.0
        for token in row[end : end + probe.continuation]:
            with torch.no_grad():
                logits = probe.model(torch.tensor([tokens])).logits[0, -1].double() / temperature
            best = logits.topk(min(top_k, 14)).indices.tolist()
            if token != 13:
                total += math.log(logits[best].softmax(0)[best.index(token)]) if token in best else -math.inf
            tokens.append(token)
        expected.append(total)
    found = log_probabilities(probe, rows, top_k, temperature)
    assert found.weights.tolist() == [1] * 39 + [0]
    assert found.sums[:-1].tolist() == pytest.approx(expected[:-1], abs=1e-4)


def test_real_samples_come_out_as_often_as_one_pass_says():
    """Free-running check: sampled with the generation code of transformers."""
    model, draws = new_model("gpt2"), 4000
    prompt = torch.tensor([[3, 1, 4]])
    torch.manual_seed(0)
    more = dict(do_sample=True, top_k=3, temperature=0.8, num_return_sequences=draws, max_new_tokens=2, pad_token_id=13)
    drawn = model.generate(prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, **more)
    pairs, counts = drawn[:, 3:].unique(dim=0, return_counts=True)
    rows = artifacts(torch.cat([prompt.expand(len(pairs), -1), pairs], 1), [3] * len(pairs))
    chances = log_probabilities(Probe(model, 2), rows, 3, 0.8).sums.exp()
    assert len(pairs) == 9 and chances.sum().item() == pytest.approx(1, abs=1e-5)  # 3 x 3 continuations are all
    assert ((counts / draws - chances).abs() < 5 * (chances * (1 - chances) / draws).sqrt()).all()


def test_variants_by_name():
    metric = variant("percent_extractable_n1000_p90_k10_t70")
    assert metric is variant(metric.name) and metric.values.keywords == {"top_k": 10, "temperature": 0.7}
    assert (
        metric.summary.keywords == {"n": 1000, "p": 0.9} and "1000 samples hold with probability 0.9" in metric.meaning
    )
    assert variant("percent_extractable_n5_p1").values.keywords == {"top_k": 40, "temperature": 1.0}
    for other in ("percent_extractable", "percent_extractable_n5", "percent_extractable_p5_n5", "perplexity"):
        assert variant(other) is None


@pytest.mark.parametrize(
    "ending, message",
    [("n0_p50", "n is 0; allowed: at least 1"), ("n1_p0", "p is 0; allowed: 1 to 99"), ("n1_p100", "p is 100"),
     ("n1_p50_k0", "k is 0"), ("n1_p50_k1_t0", "t is 0")],
)  # fmt: skip
def test_numbers_out_of_range(ending, message):
    with pytest.raises(UserError, match=f"--metrics percent_extractable_{ending}: {message}"):
        variant(f"percent_extractable_{ending}")


def test_a_top_k_above_the_vocabulary_is_said_once(caplog):
    extraction._tell_plain_sampling.cache_clear()
    probe, rows = known_in_part()
    with caplog.at_level(logging.WARNING):
        log_probabilities(probe, rows)
        assert not caplog.records  # nobody asked for the default
        plain = log_probabilities(probe, rows, 50)
        log_probabilities(probe, rows, 50)
        assert [record.message for record in caplog.records] == [
            "extraction by sampling: top-k 50 is above the vocabulary of 14: plain sampling"
        ]
        assert torch.equal(plain.sums, log_probabilities(probe, rows, 14).sums) and len(caplog.records) == 1
