import math
import zlib
from dataclasses import replace

import pytest
import torch
from known_rows import PAD, Table, artifacts, known_in_part, windows
from tiny import new_model

from tinymem.errors import NotFinite
from tinymem.metrics.exposure import exposures
from tinymem.metrics.membership import (
    AUC_GRADIENT_NORM,
    AUC_LOSS,
    AUC_TWIN,
    LOSS_DISTANCE,
    bootstrap_auc,
    distances_from_twin,
    gradient_norms,
    losses,
    losses_over_twin,
    min_k,
    min_k_plus,
    placements,
    relative,
    zlib_ratios,
)
from tinymem.metrics.metric import as_values
from tinymem.metrics.probe import Probe

SCORES = (losses, zlib_ratios, min_k, min_k_plus)


class Twin:
    """References that have a twin and nothing else."""

    def __init__(self, probe: Probe):
        self.probe = probe

    def twin(self, batch_size: int) -> Probe:
        return self.probe


def halves() -> Table:
    """After 0: 0 with 1/2, 1 with 1/4, 2 with 1/8 and 3 with 1/8; after any other token all four are as likely."""
    return Table(torch.tensor([[0.5, 0.25, 0.125, 0.125], *[[0.25] * 4] * 3]).log())


def test_scores_by_hand():
    two = math.log(2)  # a loss of 1 bit
    rows = artifacts([[0, 0, 0, 1], [0, 2, 0, 0]], [1, 1])
    probe = Probe(halves(), 3)
    assert losses(probe, rows).tolist() == pytest.approx([4 / 3 * two, 2 * two])  # 1 1 2 and 3 2 1 bits
    assert min_k(probe, rows).tolist() == pytest.approx([2 * two, 3 * two])  # a fifth of three: the one worst
    bytes_ = [len(zlib.compress(b"".join(t.to_bytes(4, "little") for t in row[1:]))) for row in rows.planted.tolist()]
    assert zlib_ratios(probe, rows).tolist() == pytest.approx([4 * two / bytes_[0], 6 * two / bytes_[1]])
    # After 0: mean 1.75 bits, variance 1/2 + 1 + 9/4 - 1.75^2 = 11/16. 2 is 1.25 bits worse. After 2 nothing deviates.
    assert min_k_plus(probe, rows).tolist() == pytest.approx([0.25 / math.sqrt(11 / 16), 1.25 / math.sqrt(11 / 16)])


def test_a_uniform_distribution_has_no_deviation_to_divide_by():
    assert min_k_plus(Probe(Table(torch.zeros(4, 4)), 2), artifacts([[0, 1, 2]], [1])).tolist() == pytest.approx([0])


def test_scores_against_a_token_by_token_loop():
    probe, rows = known_in_part(30, 9)
    found = [score(probe, rows).tolist() for score in SCORES]
    for number, (_, prompt, tokens) in enumerate(windows(probe, rows)[:-1]):
        nats, standard = [], []
        for place, token in enumerate(tokens):
            with torch.no_grad():
                log = probe.model(torch.tensor([prompt + tokens[:place]])).logits[0, -1].double().log_softmax(0)
            mean = (log.exp() * log).sum()
            nats.append(-log[token].item())
            standard.append(((log[token] - mean) / ((log.exp() * (log - mean) ** 2).sum()).sqrt()).item())
        count = max(1, len(tokens) // 5)
        size = len(zlib.compress(b"".join(token.to_bytes(4, "little") for token in tokens)))
        expected = [sum(nats) / len(nats), sum(nats) / size]
        expected += [sum(sorted(nats)[-count:]) / count, -sum(sorted(standard)[:count]) / count]
        assert [values[number] for values in found] == pytest.approx(expected, abs=2e-4)
    assert all(math.isnan(values[-1]) for values in found)  # nothing but pads


def test_the_loss_is_that_of_sequences_sampled_from_the_model():
    """Free-running check: what a model writes itself has, on average, its own entropy as loss."""
    model, prompt = new_model("gpt2"), torch.tensor([[3, 1, 4]])
    torch.manual_seed(0)
    more = dict(do_sample=True, top_k=0, num_return_sequences=3000, max_new_tokens=3, pad_token_id=13)
    drawn = model.generate(prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, **more)
    probe, rows = Probe(model, 3, 500), artifacts(drawn, [3] * len(drawn))
    window = probe.teacher_forced(rows, "planted", need="distribution")
    gap = losses(probe, rows) + window.means.double().mean(1)
    assert gap.mean().abs() < 4 * gap.std() / math.sqrt(len(drawn)) and gap.std() > 0.05


def test_placements_by_hand_and_against_pairs():
    members, others = torch.tensor([1.0, 2.0, 5.0, torch.nan]), torch.tensor([2.0, 3.0, torch.nan, 4.0])
    assert (
        placements(members, others)[:3].tolist() == pytest.approx([1, 5 / 6, 0])
        and placements(members, others)[3].isnan()
    )
    assert placements(members, others[2:3]).isnan().all()
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, 9, (count,), generator=generator).double() for count in (30, 20))
    pairs = [(a < b) + 0.5 * (a == b) for a in one.tolist() for b in other.tolist()]
    assert placements(one, other).mean().item() == pytest.approx(sum(pairs) / 600)
    assert placements(one, other).mean() + placements(other, one).mean() == pytest.approx(1)
    assert placements(one, one).mean().item() == pytest.approx(0.5)  # as it is where planting left no trace
    assert torch.equal(placements(one.exp(), other.exp()), placements(one, other))  # a matter of order alone


def test_the_interval_of_an_auc():
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(40, generator=generator).double(), torch.randn(30, generator=generator).double() + 0.5
    low, high = bootstrap_auc(one, other, 4000, 3)
    assert bootstrap_auc(one, other, 4000, 3) == (low, high) != bootstrap_auc(one, other, 4000, 4)
    assert low < placements(one, other).mean() < high
    torch.manual_seed(0)
    plain = [
        placements(one[torch.randint(40, (40,))], other[torch.randint(30, (30,))]).mean().item() for _ in range(3000)
    ]
    expected = torch.tensor(plain).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert [low, high] == pytest.approx(expected, abs=0.015)
    assert bootstrap_auc(one, one + 100, 50) == (1, 1) and bootstrap_auc(one[:0], other) is None
    assert bootstrap_auc(one[:1], other) is None and bootstrap_auc(one, other[:1]) is None
    assert bootstrap_auc(torch.cat([one, torch.tensor([torch.nan])]), other, 4000, 3) == (low, high)


def test_relative_to_the_twin():
    assert relative(0.5, 0.5) == 1 and relative(1.0, 0.5) == 0 and relative(0.25, 0.5) == 0.5
    assert relative(1.0, 0.4) == 0 and relative(0.0, 0.0) == 1 and relative(0.5, 0.0) == 0


def test_auc_and_exposure_of_a_probe():
    # Bits a token: members 1 and 2, non-members 2, 2 and 3.
    members, others = artifacts([[0, 0], [0, 1]], [1, 1]), artifacts([[0, 1], [0, 1], [0, 2]], [1, 1, 1])
    probe = Probe(halves(), 1, non_members=others)
    assert AUC_LOSS.values(probe, members).tolist() == pytest.approx([1, (0.5 + 0.5 + 1) / 3])
    # Rank 1 of 4; and rank 2, the middle of 1, 2 and 3.
    assert exposures(probe, members).tolist() == pytest.approx([2, 1])
    alone = Probe(halves(), 1)
    assert AUC_LOSS.values(alone, members).isnan().all() and exposures(alone, members).isnan().all()
    empty = Probe(halves(), 1, non_members=others.select([]))
    assert AUC_LOSS.values(empty, members).isnan().all() and exposures(empty, members).isnan().all()


def test_exposure_of_sequences_like_all_others():
    """Ranks are then evenly spread: the mean is log2 R - mean log2 rank, which nears 1 / ln 2."""
    losses_ = torch.linspace(1, 2, 1000)
    table = torch.zeros(1001, 1001)
    table[0, 1:] = -losses_
    rows = artifacts([[0, token] for token in range(1, 1001)], [1] * 1000)
    found = exposures(
        Probe(Table(table), 1, non_members=rows.select(torch.arange(0, 1000, 2))), rows.select(torch.arange(1, 1000, 2))
    )
    assert found.mean().item() == pytest.approx(1 / math.log(2), abs=0.03) and found.max() <= math.log2(501)


def test_scores_against_the_twin():
    probe, rows = known_in_part(30, non_members=None)
    assert losses_over_twin(probe, rows).isnan().all()
    other = Probe(new_model("gpt2", seed=1), 5, pad=PAD)
    probe.references, probe.non_members = Twin(other), rows.select(torch.arange(5))
    expected = losses(probe, rows) - losses(other, rows)
    assert torch.equal(losses_over_twin(probe, rows)[:-1], expected[:-1]) and expected[:-1].abs().min() > 0
    assert torch.equal(AUC_TWIN.values(probe, rows)[:-1], placements(expected, expected[:5])[:-1])
    probe.references = Twin(probe)
    assert losses_over_twin(probe, rows)[:-1].eq(0).all() and AUC_TWIN.values(probe, rows)[:-1].eq(0.5).all()


def test_the_twin_s_own_twin_is_itself():
    """Another probe of it may compute the same losses in another way, which differs in the last bits."""
    probe, rows = known_in_part(30)
    probe.references = Twin(Probe(probe.model, 5, pad=PAD, needs=("distribution",)))
    assert probe.twin is probe


def test_the_distance_of_losses_from_the_twins_by_hand():
    # Bits a token: the model's losses are 1, 1, 2, 3; the twin's 2 each. At 1 lie 2 of 4 and none, up to 2 3 and all.
    rows = artifacts([[0, 0], [0, 0], [0, 1], [0, 2]], [1] * 4)
    probe = Probe(halves(), 1, references=Twin(Probe(Table(torch.zeros(4, 4)), 1)))
    assert distances_from_twin(probe, rows).tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25])
    assert LOSS_DISTANCE.summary(as_values(distances_from_twin(probe, rows))) == pytest.approx(0.5)
    assert distances_from_twin(Probe(halves(), 1), rows).isnan().all()


def test_the_distance_of_losses_is_that_of_kolmogorov_and_smirnov():
    probe, rows = known_in_part(30)
    other = Probe(new_model("gpt2", seed=1), 5, pad=PAD)
    probe.references = Twin(other)
    own, twin = losses(probe, rows)[:-1], losses(other, rows)[:-1]
    gaps = [abs((own <= place).double().mean() - (twin <= place).double().mean()) for place in torch.cat([own, twin])]
    assert LOSS_DISTANCE.summary(as_values(distances_from_twin(probe, rows))) == pytest.approx(max(gaps).item())
    assert distances_from_twin(probe, rows)[-1].isnan()  # nothing but pads
    probe.references = Twin(probe)
    assert distances_from_twin(probe, rows)[:-1].eq(0).all()


def test_gradients_that_are_no_numbers_are_an_error():
    probe, rows = known_in_part(3)

    def spoil(module, inputs, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: gradient * torch.nan)

    probe.model.transformer.ln_f.register_forward_hook(spoil)
    with pytest.raises(NotFinite, match="its gradients are not finite numbers"):
        gradient_norms(probe, rows)


def test_gradient_norms_against_backward_passes_over_single_rows():
    probe, rows = known_in_part(20, 9)
    model = probe.model
    model.requires_grad_(False)
    found = gradient_norms(probe, rows)
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())
    for number, (_, prompt, tokens) in enumerate(windows(probe, rows)[:-1]):
        model.requires_grad_(True).zero_grad()
        logs = model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
        logs[range(len(prompt) - 1, len(prompt) + len(tokens) - 1), tokens].mean().neg().backward()
        norms = [weight.grad.norm().item() for weight in model.parameters()]
        assert found[number].item() == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    assert found[-1].isnan()
    probe.non_members = rows.select(torch.arange(5))
    assert torch.equal(AUC_GRADIENT_NORM.values(probe, rows)[:-1], placements(found, found[:5])[:-1])


def test_a_row_of_several_sets_is_run_once():
    probe, rows = known_in_part(20, 5)
    found, passes = gradient_norms(probe, rows), []
    probe.on_rows = lambda what, done, total: passes.append((what, done, total))
    longer = rows.planted.clone()
    longer[0, int(rows.prompt_end[0]) + 5 :] = 3  # beyond the k tokens
    again = gradient_norms(probe, replace(rows.select(torch.arange(5)), planted=longer[:5]))
    assert torch.equal(again, found[:5]) and not passes
