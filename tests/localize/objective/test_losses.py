"""Every loss against values worked out token by token, and its gradient against finite differences."""

import math
from types import SimpleNamespace

import pytest
import torch

from tinymem.errors import UserError
from tinymem.localize.objective import terms
from tinymem.localize.registry import GROUPS, METHODS
from tinymem.training.reference import Reference
from tinymem.training.step import Side, backward

PAD = 3
# Row i: the probabilities of the next token after token i. NOW: the model; BEFORE: the model before the edit.
NOW = [[0.5, 0.25, 0.15, 0.1], [0.2, 0.5, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1], [0.25] * 4]
BEFORE = [[0.4, 0.38, 0.12, 0.1], [0.08, 0.3, 0.5, 0.12], [0.2, 0.08, 0.6, 0.12], [0.25] * 4]
# Rows of unequal length. The prompts have 1 and 2 tokens, so that the pairs (from, to) that count are these:
FORGET, PROMPTS = [[0, 1, 2, 2], [2, 1, 1, PAD]], [1, 2]
COUNTED = [[(0, 1), (1, 2), (2, 2)], [(1, 1)]]
TWINS = [[0, 1, 0, 0], [2, 1, 2, 2]]
TWIN_COUNTED = [[(0, 1), (1, 0), (0, 0)], [(1, 2), (2, 2)]]
RETAIN, RETAINED = [[1, 0, 2, PAD], [2, 2, PAD, PAD]], [[(1, 0), (0, 2)], [(2, 2)]]
OPTIONS = {  # other than the defaults where that makes a case clearer
    "npo": dict(beta=0.5, beta_scaling="none"), "dpo": dict(beta=0.5, beta_scaling="none"), "undial": dict(beta=1.5),
    "obliviate": dict(stride=2, top_k=2), "simnpo": dict(delta=0.2), "wga": dict(beta=0.5),
    "satimp": dict(beta_1=2.0, beta_2=0.5),
}  # fmt: skip


class Table(torch.nn.Module):
    """A model whose logits depend on the last token alone."""

    def __init__(self, probabilities):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(probabilities, dtype=torch.float64).log())
        sizes = SimpleNamespace(vocab_size=4, hidden_size=4)
        self.config = SimpleNamespace(get_text_config=lambda: sizes)
        self.device, self.dtype = torch.device("cpu"), torch.float64

    def forward(self, tokens, use_cache=False):
        return SimpleNamespace(logits=self.table[tokens])


def sides() -> tuple[Side, Side]:
    forget, twins, retain = (torch.tensor(rows) for rows in (FORGET, TWINS, RETAIN))
    ends = torch.tensor(PROMPTS)
    return Side.of(forget, PAD, ends, Side.of(twins, PAD, ends)), Side.of(retain, PAD)


def sigmoid_term(b, margin):
    return 2 / b * math.log(1 + math.exp(-b * margin))


def surprise(table, pairs):
    return sum(-math.log(table[a][b]) for a, b in pairs)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def tokens(value):
    """The mean of value(from, to) over all forget tokens that count."""
    return mean(value(a, b) for pairs in COUNTED for a, b in pairs)


def divergence(target, model):
    return sum(p * math.log(p / q) for p, q in zip(target, model) if p)


def entropy(target, model):
    return -sum(p * math.log(q) for p, q in zip(target, model) if p)


def normal(values):
    return [value / sum(values) for value in values]


def ascent(now, held):
    return tokens(lambda a, b: math.log(now[a][b]))


def rise(now, pairs):
    return surprise(now, pairs) - surprise(BEFORE, pairs)


def npo(now, held):
    return mean(sigmoid_term(0.5, rise(now, pairs)) for pairs in COUNTED)


def dpo(now, held):
    return mean(
        sigmoid_term(0.5, rise(now, pairs) - rise(now, twin)) for pairs, twin in zip(COUNTED, TWIN_COUNTED)
    )  # fmt: skip


def simnpo(now, held):
    return mean(sigmoid_term(4.5, surprise(now, pairs) / len(pairs) - 0.2) for pairs in COUNTED)


def undial(now, held):
    def value(a, b):
        lowered = [p * math.exp(-1.5 * (i == b)) for i, p in enumerate(BEFORE[a])]
        return entropy(normal(lowered), now[a])

    return tokens(value)


def ceu(now, held):
    """The first counted token of a row is left out: of the second row nothing is left."""
    rest = [[normal([p * (i != b) for i, p in enumerate(held[a])]) for a, b in pairs[1:]] for pairs in COUNTED]
    return mean(
        mean(entropy(target, now[a]) for target, (a, _) in zip(targets, pairs[1:])) if targets else 0.0
        for targets, pairs in zip(rest, COUNTED)
    )


def obliviate(now, held):
    """Of three tokens the first and the third are chosen, of one the only one. A target has two tokens."""

    def value(place, a, b):
        allowed = [p if place % 2 or i != b else 0.0 for i, p in enumerate(BEFORE[a])]
        best = sorted(range(4), key=lambda i: (-allowed[i], i))[:2]
        return divergence(normal([p if i in best else 0.0 for i, p in enumerate(allowed)]), now[a])

    return mean(value(place, a, b) for pairs in COUNTED for place, (a, b) in enumerate(pairs))


def wga(now, held):
    return tokens(lambda a, b: held[a][b] ** 0.5 * math.log(now[a][b]))


def satimp(now, held):
    return tokens(lambda a, b: held[a][b] ** 2 * (1 - held[a][b]) ** 0.5 * math.log(now[a][b]))


def pdu(now, held):
    def value(a, b):
        logs = [math.log(p) for p in now[a]]
        return (max(logs) - mean(logs)) ** 2

    return tokens(value)


FORGET_TERMS = {"gradient_ascent": ascent, "gradient_difference": ascent, "ascent_kl": ascent, "npo": npo, "dpo": dpo}
FORGET_TERMS |= {"simnpo": simnpo, "undial": undial, "ceu": ceu, "obliviate": obliviate, "wga": wga, "satimp": satimp}
FORGET_TERMS |= {"pdu": pdu}


def retain_term(name, now):
    pairs = [pair for row in RETAINED for pair in row]
    if name == "ascent_kl":
        return mean(divergence(BEFORE[a], now[a]) for a, b in pairs)
    nats = mean(-math.log(now[a][b]) for a, b in pairs)
    return nats - mean(-math.log(BEFORE[a][b]) for a, b in pairs) - 0.05 if name == "pdu" else nats


def found(name, weights=None, model=None, microbatch=64):
    """The means of a loss, and the gradient of the table for these weights."""
    model, module = model or Table(NOW), METHODS[name].module
    hp, reference = module.HyperParameters(**OPTIONS.get(name, {})), Reference(Table(BEFORE), 64, "float32")
    loss = lambda model, forget, retain: module.loss(hp, model, reference, forget, retain)  # noqa: E731
    chosen = [whole.select(torch.arange(len(whole))) for whole in sides()]
    means = backward(model, loss, chosen, microbatch, "float32", (), weights)
    return means.tolist(), model.table.grad


def test_every_loss_has_a_case():
    assert {*FORGET_TERMS, "rmu", "repselect"} == set(GROUPS["objective"])


@pytest.mark.parametrize("name", FORGET_TERMS)
def test_both_parts_are_those_worked_out_by_hand(name):
    means, _ = found(name)
    assert means == pytest.approx([FORGET_TERMS[name](NOW, NOW), retain_term(name, NOW)], abs=1e-6)


def test_two_values_in_numbers():
    assert found("gradient_ascent")[0][0] == pytest.approx((math.log(0.25 * 0.2 * 0.7 * 0.5)) / 4, abs=1e-6)
    gaps = math.log(0.38 / 0.25 * 0.5 / 0.2 * 0.6 / 0.7), math.log(0.3 / 0.5)
    expected = mean(4 * math.log(1 + math.exp(-0.5 * gap)) for gap in gaps)
    assert found("npo")[0][0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", FORGET_TERMS)
def test_gradients_are_finite_differences(name):
    """The weights and targets that a loss holds fixed stay those of the unchanged table."""
    forget_weight, retain_weight, step = 0.7, 1.3, 1e-5
    _, gradient = found(name, (forget_weight, retain_weight))

    def total(row, column, change):
        table = torch.tensor(NOW, dtype=torch.float64).log()
        table[row, column] += change
        now = table.softmax(-1).tolist()
        if name == "pdu":  # which has logits, not probabilities: the others do not see a shift of a row
            now = table.exp().tolist()
            retained = retain_term(name, table.softmax(-1).tolist())
            return forget_weight * FORGET_TERMS[name](now, NOW) + retain_weight * retained
        return forget_weight * FORGET_TERMS[name](now, NOW) + retain_weight * retain_term(name, now)

    for row in range(4):
        for column in range(4):
            slope = (total(row, column, step) - total(row, column, -step)) / (2 * step)
            assert gradient[row, column].item() == pytest.approx(slope, abs=1e-6), (row, column)


@pytest.mark.parametrize("name", FORGET_TERMS)
def test_microbatches_change_nothing(name):
    (whole, gradient), (parts, again) = found(name, (0.5, 2.0)), found(name, (0.5, 2.0), microbatch=2)
    assert parts == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(again, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FORGET_TERMS)
def test_pads_and_prompts_do_not_count(name):
    """Whatever the model says after a pad, and of the only token whose prediction lies in a prompt alone."""
    changed = [list(row) for row in NOW]
    changed[PAD] = [0.7, 0.1, 0.1, 0.1]
    assert found(name, model=Table(changed))[0] == pytest.approx(found(name)[0], abs=1e-7)
    forget, _ = sides()
    assert forget.mask.tolist() == [[True, True, True], [False, True, False]] and forget.lengths.tolist() == [3, 1]


def test_beta_is_scaled_to_the_length_of_each_row():
    forget, _ = sides()
    hp, margins = METHODS["npo"].hyper_parameters(), torch.tensor([2.0, 2.0])
    values = terms.preference(hp, forget, margins)
    expected = [sigmoid_term(0.1 * 50 / length, 2.0) for length in (3, 1)]
    assert values.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_reference_computes_once_and_only_before_the_edit(monkeypatch):
    monkeypatch.setattr("tinymem.training.reference.STORED_ROWS", 1)
    model, (forget, retain) = Table(BEFORE), sides()
    reference, calls = Reference(model, 1, "float32"), []
    rows = retain.select(torch.tensor([1, 0]))
    reference.row_sums(forget), reference.losses(rows), reference.once("x", lambda: calls.append(1) or torch.ones(1))
    reference.begin_edit()
    with torch.no_grad():
        model.table.add_(torch.randn(4, 4))
    before = torch.tensor(BEFORE, dtype=torch.float64)
    assert reference.losses(rows)[0, 0].item() == pytest.approx(-math.log(0.6))  # of two rows: from the copy
    torch.testing.assert_close(reference.logits(rows).softmax(-1)[0, 0], before[2])
    assert reference.row_sums(forget).tolist() == pytest.approx([surprise(BEFORE, pairs) for pairs in COUNTED])
    assert reference.once("x", lambda: calls.append(1)).item() == 1 and len(calls) == 1
    with pytest.raises(RuntimeError, match="in every call"):
        reference.once("y", lambda: torch.ones(1))


@pytest.mark.parametrize("name, wrong", [
    ("npo", dict(beta=0.0)), ("simnpo", dict(beta=-1.0)), ("dpo", dict(beta=0.0)), ("undial", dict(beta=0.0)),
    ("npo", dict(beta_scaling="rows")), ("pdu", dict(retain_weight=0.0)), ("obliviate", dict(stride=0)),
    ("rmu", dict(scale=0.0)), ("ascent_kl", dict(retain_loss="mse")), ("repselect", dict(kl_budget=(0.0,))),
])  # fmt: skip
def test_settings_that_are_not_allowed(name, wrong):
    (setting,) = wrong
    with pytest.raises(UserError, match=f"^--{setting} [^\n]*must be [^\n]*$"):
        METHODS[name].hyper_parameters(**wrong)
