"""Kronecker factors: against a loop over positions, and against the exact Fisher matrix where it is their product."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tinymem.data.dataset import Artifacts
from tinymem.errors import NotFinite, UserError
from tinymem.localize.cache import Cache
from tinymem.localize.curvature import factors
from tinymem.localize.curvature.factors import FactorSettings, bases, collect, groups, sampled_labels
from tinymem.localize.curvature.layers import chosen_layers, chosen_weights
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import find_mlps


def matrices(model):
    return [weight for mlp in find_mlps(model) for weight in mlp.matrices]


def inputs_and_outputs(model, tokens, weight):
    """The input of a matrix, and its output, which keeps its gradient."""
    found = []
    module = model.get_submodule(weight.name.rpartition(".")[0])

    def keep(module, inputs, output):
        output.retain_grad()
        found.extend((inputs[0].detach(), output))

    hook = module.register_forward_hook(keep)
    logits = model(tokens[None]).logits[0, :-1]
    hook.remove()
    return (*found, logits)


def looped(model, tokens, weight, ignored, labels=None):
    """A and G, one position of one row at a time, in float64."""
    out, into = weight.view().shape
    A, G, count = torch.zeros(into, into).double(), torch.zeros(out, out).double(), 0
    for number, row in enumerate(tokens):
        x, y, logits = inputs_and_outputs(model, row, weight)
        targets = row[1:] if labels is None else labels[number]
        losses = cross_entropy(logits, targets, reduction="none")
        sum(loss for loss, token in zip(losses, row[1:]) if token != ignored).backward()
        for place in range(len(row) - 1):
            if row[place + 1] != ignored:
                a, g = x.reshape(-1, into)[place].double(), y.grad.reshape(-1, out)[place].double()
                A, G, count = A + torch.outer(a, a), G + torch.outer(g, g), count + 1
    return A / count, G / count


@pytest.mark.parametrize("microbatch", [3, 64])
@pytest.mark.parametrize("ignored", [-1, 5])
def test_factors_against_a_loop(any_model, tiny_task, snapshot, microbatch, ignored):
    task = tiny_task(retain=7, microbatch=microbatch, ignored_token=None if ignored < 0 else ignored)
    before = snapshot(any_model)
    found = collect(any_model, task, task.retain, matrices(any_model))
    assert snapshot(any_model) == before
    for weight, pair in zip(matrices(any_model), found):
        for total, expected in zip(pair, looped(any_model, task.retain, weight, ignored)):
            assert total.dtype == torch.float32
            torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-7 * float(expected.max() + 1e-9))


def test_checkpointing_changes_nothing(any_model, tiny_task):
    both = [
        collect(any_model, task, task.retain, matrices(any_model))
        for task in (tiny_task(microbatch=5), tiny_task(microbatch=5, gradient_checkpointing=True))
    ]
    assert all(torch.equal(a, b) for one, other in zip(*both) for a, b in zip(one, other))


def test_drawn_labels_follow_the_model_and_not_the_microbatch(tiny_model, tiny_task):
    model, task = tiny_model(), tiny_task(retain=4000)
    tokens = task.retain[:1].expand(4000, -1)
    draws = torch.rand(4000, 11, generator=torch.Generator().manual_seed(0))
    labels = sampled_labels(model, tokens, draws)
    shares = torch.stack([(labels == token).float().mean(0) for token in range(14)], -1)
    expected = model(tokens[:1]).logits[0, :-1].softmax(-1)
    assert (shares - expected).abs().max() < 0.04 and labels.min() >= 0 and labels.max() < 14
    assert sampled_labels(model, tokens[:1], torch.ones(1, 11)).max() <= 13  # rounding may leave the sum below 1

    some = replace(task, retain=task.retain[:9])
    drawn = torch.rand((9, 11), generator=some.generator())
    labels = sampled_labels(model, some.retain, drawn)
    for microbatch in (2, 64):
        pairs = collect(model, replace(some, microbatch=microbatch), some.retain, matrices(model), "sampled")
        for weight, pair in zip(matrices(model), pairs):
            for total, expected in zip(pair, looped(model, some.retain, weight, -1, labels)):
                torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_product_is_the_exact_fisher_of_one_input_with_any_labels(tiny_model, architecture):
    """One position per row. With one first token all rows have the same x, so that E[x x' (x) g g'] = A (x) G."""
    model = tiny_model(architecture)
    rows = torch.tensor([[3, label] for label in range(14)])
    empty = Artifacts(rows[:0], rows[:0], rows[:0, 0], rows[:0, 0])
    task = UnlearningTask(empty, rows, empty, continuation=1)
    for weight, (A, G) in zip(matrices(model), collect(model, task, rows, matrices(model))):
        fisher = 0
        for row in rows:
            loss = cross_entropy(model(row[None]).logits[0, :1], row[1:])
            (gradient,) = torch.autograd.grad(loss, [weight.parameter])
            columns = weight.view(gradient).T.flatten()  # one column of W after another
            fisher = fisher + torch.outer(columns, columns) / len(rows)
        torch.testing.assert_close(torch.kron(A, G), fisher, rtol=1e-4, atol=1e-7)


def test_the_product_of_the_sampled_factors_approaches_the_true_fisher(tiny_model):
    """Every label counts with its probability under the model."""
    model = tiny_model()
    rows = torch.tensor([[3, 0]] * 30000)
    empty = Artifacts(rows[:0], rows[:0], rows[:0, 0], rows[:0, 0])
    task = UnlearningTask(empty, rows, empty, continuation=1, microbatch=5000)
    weight = matrices(model)[0]
    ((A, G),) = collect(model, task, rows, [weight], "sampled")
    logits = model(rows[:1, :1]).logits[0, 0]
    fisher = 0
    for label, share in enumerate(logits.softmax(-1).tolist()):
        loss = cross_entropy(model(rows[:1]).logits[0, :1], torch.tensor([label]))
        (gradient,) = torch.autograd.grad(loss, [weight.parameter])
        columns = weight.view(gradient).T.flatten()
        fisher = fisher + share * torch.outer(columns, columns)
    assert (torch.kron(A, G) - fisher).norm() < 0.03 * fisher.norm()


def test_rotation_and_back_is_the_identity(any_model, tiny_task):
    weights = chosen_weights(any_model, FactorSettings())
    assert [w.name for w in weights] == [w.name for w in matrices(any_model)]
    for weight, basis in bases(any_model, tiny_task(), weights, FactorSettings()):
        torch.testing.assert_close(basis.back(basis.rotate(weight.view())), weight.view(), rtol=1e-5, atol=1e-6)
        assert basis.input_values.min() >= 0 and basis.output_values.min() >= 0


def test_gpt2_and_its_twin_of_linear_layers_agree(tiny_model, linear_twin, tiny_task):
    """Conv1D stores (in, out): the twin, of torch.nn.Linear, has equal weights stored as (out, in)."""
    model, task = tiny_model(), tiny_task()
    pairs = [collect(m, task, task.retain, matrices(m)) for m in (model, linear_twin(model))]
    for one, other in zip(*pairs):
        for a, b in zip(one, other):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)


def test_groups_hold_what_fits(tiny_model, tiny_task, monkeypatch):
    """Several passes give the same bases; one matrix needs 8^2 + 32^2 entries."""
    model, task = tiny_model(layers=3), tiny_task()
    weights = matrices(model)
    assert [len(group) for group in groups(weights)] == [6]
    whole = list(bases(model, task, weights, FactorSettings()))
    monkeypatch.setattr(factors, "HELD", 2 * (8**2 + 32**2))
    assert [len(group) for group in groups(weights)] == [2, 2, 2]
    for (weight, one), (other, two) in zip(whole, bases(model, task, weights, FactorSettings())):
        assert weight is other
        assert torch.equal(one.input_values, two.input_values) and torch.equal(one.outputs, two.outputs)
    monkeypatch.setattr(factors, "HELD", 1)
    assert [len(group) for group in groups(weights)] == [1] * 6
    assert factors.factor_passes(tiny_task(microbatch=5), weights, FactorSettings()) == (6 * 5, 6 * 5)
    assert factors.factor_passes(tiny_task(microbatch=5), weights, FactorSettings(labels="sampled")) == (60, 30)


def test_bases_are_cached_once_for_both_methods_and_counted_once(tiny_model, tiny_task, tmp_path):
    model, hp = tiny_model(), FactorSettings()
    cache = Cache(tmp_path, {"weights": "w"})
    task = tiny_task(cache=cache)
    first = list(bases(model, task, matrices(model), hp))
    cost = cache.cost
    assert cost.seconds > 0 and len(list(tmp_path.iterdir())) == 1
    again = list(bases(model, task, matrices(model), hp))
    assert cache.cost == cost and all(torch.equal(a[1].inputs, b[1].inputs) for a, b in zip(first, again))
    other = Cache(tmp_path, {"weights": "w"})
    list(bases(model, tiny_task(cache=other), matrices(model), hp))
    assert other.cost.seconds == cost.seconds and other.spent == 0  # from disk, with the cost of computing
    list(bases(model, task, matrices(model)[:1], hp))
    list(bases(model, task, matrices(model), replace(hp, labels="sampled")))
    list(bases(model, task, matrices(model), replace(hp, factor_sequences=10)))
    assert len(list(tmp_path.iterdir())) == 4


def test_too_few_tokens_say_how_many_are_needed(tiny_model, tiny_task):
    model, hp = tiny_model(), FactorSettings(factor_sequences=2)
    with pytest.raises(
        UserError, match=r"2 retain sequences have 22 tokens, and a factor of 32 x 32 needs at least 32"
    ):
        next(bases(model, tiny_task(), matrices(model), hp))
    next(bases(model, tiny_task(), matrices(model), FactorSettings(factor_sequences=3)))


def test_factors_that_are_not_finite_are_refused(tiny_model, tiny_task):
    model = tiny_model()
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = torch.nan
    with pytest.raises(NotFinite, match="factors are not finite"):
        next(bases(model, tiny_task(), matrices(model), FactorSettings()))


@pytest.mark.parametrize(
    "text, expected", [("all", [0, 1, 2]), ("last", [2]), ("last_two", [1, 2]), ("0,2", [0, 2]), ("1", [1])]
)
def test_layers_by_name_and_number(text, expected):
    assert chosen_layers(text, 3) == expected


@pytest.mark.parametrize("text", ["0,10", "10,0", "0,0,10", " 10, 00"])
def test_the_same_layers_are_one_run(text):
    hp = FactorSettings(layers=text)
    assert hp.layers == "0,10" == replace(hp, labels="sampled").layers  # by numbers, not by letters


def test_last_two_of_one_layer():
    assert chosen_layers("last_two", 1) == [0]


@pytest.mark.parametrize(
    "text, message",
    [
        ("3", "no layer 3; the model has layers 0 to 2"),
        ("9,0", "no layer 9"),
        ("first", "must be all, last, last_two, or numbers"),
        ("-1", "must be all, last"),
        ("0,", "must be all, last"),
    ],
)
def test_layers_that_are_not_there(text, message):
    with pytest.raises(UserError, match=message) as raised:
        chosen_layers(FactorSettings(layers=text).layers, 3)
    assert "\n" not in str(raised.value)


def test_projections(tiny_model):
    for architecture, parts in (("gpt2", {"in": 2, "out": 2, "both": 4}), ("llama", {"in": 4, "out": 2, "both": 6})):
        for projections, count in parts.items():
            assert len(chosen_weights(tiny_model(architecture), FactorSettings(projections=projections))) == count
    (weight,) = chosen_weights(tiny_model(), FactorSettings(layers="last", projections="out"))
    assert weight.name == "transformer.h.1.mlp.c_proj.weight"
