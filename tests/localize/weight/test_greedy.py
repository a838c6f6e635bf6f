import dataclasses
from dataclasses import replace
from functools import partial

import pytest
import torch

from tinymem.data.dataset import Artifacts
from tinymem.errors import NotFinite, UserError
from tinymem.localize.learning import endless_batches, natural_batches
from tinymem.localize.ranking import how_many
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight import greedy
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied
from tinymem.models.tinymem import ModelSettings, new_model

PAD = 0
Halves = partial(greedy.HyperParameters, unlearn_share=0.5)


def score(model, task, hp, ratio):
    return greedy.score(model, task, replace(hp, ratio=(ratio,)))


def make_model():
    sizes = ModelSettings(n_layers=2, n_heads=2, n_embd=8)
    return new_model(sizes, vocabulary_size=11, max_ctx=12, seed=0, bos_token_id=1, eos_token_id=2).eval()


def make_task(forget=7, retain=20, microbatch=64, ignored_token=None):
    tokens = torch.randint(0, 11, (forget + retain, 12), generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(forget, dtype=torch.long)
    artifacts = Artifacts(tokens[:forget], tokens[:forget], zeros, zeros)
    none = artifacts.select(zeros[:0])
    return UnlearningTask(artifacts, tokens[forget:], none, 4, ignored_token, microbatch=microbatch)


def share(model, entries):
    """The ratio that asks for so many entries."""
    return entries / sum(p.numel() for p in model.parameters())


def order_of(scores):
    """(name, flat index) of the ranked entries, first dropped first."""
    ranked = [
        (-float(tensor.flatten()[i]), name, i)
        for name, tensor in scores.items()
        for i in (tensor > -torch.inf).flatten().nonzero().flatten().tolist()
    ]
    return [(name, i) for _, name, i in sorted(ranked)]


def sequence_loss(model, row, ignored_token):
    losses = torch.nn.functional.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="none")
    keep = torch.ones_like(losses) if ignored_token is None else (row[1:] != ignored_token).float()
    return (losses * keep).sum() / keep.sum()


def plain_greedy(model, task, batch_size, steps, k=1, forget=None, batches=None):
    """One sequence and one entry at a time, on a model that really changes: mean(-B * label * loss), largest w * g."""
    weights = [w for mlp in find_mlps(model) for w in mlp.weights]
    generator, forget = task.generator(), forget or batch_size // 2
    sides = (task.forget.planted, forget), (task.retain, batch_size - forget)
    batches = batches or zip(*(endless_batches(tokens, size, generator) for tokens, size in sides))
    zeroed = []
    while len(zeroed) < steps:
        forget, retain = next(batches)
        labelled = [(row, 1) for row in forget] + [(row, -1) for row in retain]
        terms = [-len(labelled) * label * sequence_loss(model, row, task.ignored_token) for row, label in labelled]
        gradients = torch.autograd.grad(torch.stack(terms).mean(), [w.parameter for w in weights])
        gains = []
        for number, (weight, gradient) in enumerate(zip(weights, gradients)):
            values = (weight.view() * weight.view(gradient)).flatten().tolist()
            gains += [(-v, number, i) for i, v in enumerate(values) if (weight.name, i) not in zeroed]
        for _, number, i in sorted(gains)[: min(k, steps - len(zeroed))]:
            view = weights[number].view()
            view[divmod(i, view.shape[1]) if view.dim() == 2 else i] = 0
            zeroed.append((weights[number].name, i))
    return zeroed


@pytest.mark.parametrize("ignored_token", [None, PAD])
@pytest.mark.parametrize("k, steps", [(1, 12), (5, 12)])
def test_the_order_is_that_of_a_plain_loop(k, steps, ignored_token):
    model, task = make_model(), make_task(ignored_token=ignored_token)
    with torch.no_grad():
        for mlp in find_mlps(model):
            mlp.biases[0].parameter.normal_()  # so that biases compete
    hp = Halves(batch_size=8, greedy_k=k)
    scores = score(model, task, hp, share(model, steps))
    expected = plain_greedy(model, task, 8, steps, k)
    assert order_of(scores) == expected
    assert any(name.endswith("bias") for name, _ in expected) and any(name.endswith("weight") for name, _ in expected)


def test_a_batch_mixed_otherwise_weighs_its_sequences_alike():
    model, task = make_model(), make_task()
    hp = greedy.HyperParameters(batch_size=8, unlearn_share=0.25)
    expected = plain_greedy(make_model(), task, 8, 12, forget=2)
    assert order_of(score(model, task, hp, share(model, 12))) == expected
    assert expected != plain_greedy(make_model(), task, 8, 12)


def test_natural_batches_weigh_their_sequences_alike_and_may_lack_a_side():
    model, task = make_model(), make_task(forget=2, retain=20)
    pairs = list(natural_batches(task, 4, 4, task.generator()))
    assert {len(forget) for forget, _ in pairs} == {0, 1} or {len(forget) for forget, _ in pairs} == {0, 1, 2}
    hp = greedy.HyperParameters(batch_size=4, unlearn_share=0.0)
    expected = plain_greedy(make_model(), task, 4, 12, batches=iter(pairs))
    assert order_of(score(model, task, hp, share(model, 12))) == expected
    assert expected != plain_greedy(make_model(), task, 4, 12, forget=1)


def test_it_forgets_more_than_it_breaks():
    model, task = make_model(), make_task()
    before = [task.mean_loss(model, tokens) for tokens in (task.forget.planted, task.retain)]
    scores = score(model, task, Halves(), share(model, 20))
    with applied(model, Zeros(greedy.drop(find_mlps(model), scores, share(model, 20)))):
        after = [task.mean_loss(model, tokens) for tokens in (task.forget.planted, task.retain)]
    assert after[0] - before[0] > max(0.0, after[1] - before[1])


def test_a_prefix_of_the_ranking_answers_smaller_ratios():
    model, task = make_model(), make_task()
    total = sum(p.numel() for p in model.parameters())
    scores = score(model, task, greedy.HyperParameters(), share(model, 15))
    order = order_of(scores)
    for ratio in [0.3 / total, 0.6 / total, 1 / total, 7.4 / total, 7.6 / total, 15 / total]:
        masks = greedy.drop(find_mlps(model), scores, ratio)
        dropped = {(name, i) for name, mask in masks.items() for i in mask.flatten().nonzero().flatten().tolist()}
        assert dropped == set(order[: how_many(ratio, total)])


def test_smaller_runs_are_prefixes_of_larger_ones():
    model, task = make_model(), make_task()
    few, many = (order_of(score(model, task, greedy.HyperParameters(), share(model, n))) for n in (4, 9))
    assert few == many[:4] and len(many) == 9


def test_a_ratio_that_rounds_to_nothing_drops_nothing():
    model = make_model()
    scores = score(model, make_task(), greedy.HyperParameters(), share(model, 0.4))
    assert order_of(scores) == []
    assert not any(mask.any() for mask in greedy.drop(find_mlps(model), scores, share(model, 0.4)).values())


def test_the_rank_survives_float32_in_large_models():
    total, ranks = 7_000_000_000, torch.arange(1, 100_001, dtype=torch.float64)
    scores = {"w": (-(ranks - 0.5) / total).float()}
    for ratio in (1e-7, 1e-6, 1e-5):
        assert int(greedy.drop([], scores, ratio)["w"].sum()) == how_many(ratio, total)


def test_each_side_counts_half_however_small():
    model, hp = make_model(), Halves(batch_size=8)
    one = make_task(forget=1, retain=4)
    four = dataclasses.replace(one, forget=one.forget.select(torch.zeros(4, dtype=torch.long)))
    alone, repeated = (order_of(score(model, task, hp, share(model, 3))) for task in (one, four))
    assert alone == repeated and len(alone) == 3


def test_microbatch_changes_nothing():
    model, hp = make_model(), greedy.HyperParameters(batch_size=8)
    whole, small = (score(model, make_task(microbatch=size), hp, share(model, 8)) for size in (64, 3))
    assert order_of(whole) == order_of(small)


def test_linear_layers_score_as_conv1d():
    model, task = make_model(), make_task()
    expected = score(model, task, greedy.HyperParameters(), share(model, 8))
    for block in model.transformer.h:
        for name in ("c_fc", "c_proj"):
            old = getattr(block.mlp, name)
            new = torch.nn.Linear(*old.weight.shape)
            new.load_state_dict({"weight": old.weight.T, "bias": old.bias})
            setattr(block.mlp, name, new)
    scores = score(model, task, greedy.HyperParameters(), share(model, 8))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in scores.items())


def test_bfloat16_weights_have_float32_scores():
    model = make_model().bfloat16()
    scores = score(model, make_task(), greedy.HyperParameters(), share(model, 5))
    assert all(tensor.dtype == torch.float32 for tensor in scores.values()) and len(order_of(scores)) == 5


def test_equal_gains_go_by_index_and_gradients_that_are_not_finite_never_go():
    model = make_model()
    with torch.no_grad():
        for mlp in find_mlps(model):
            for weight in mlp.weights:
                weight.parameter.zero_()  # every w * g is 0
    broken = torch.zeros(32)
    broken[:3] = torch.nan
    model.transformer.h[0].mlp.c_fc.bias.register_hook(lambda gradient: gradient + broken)
    scores = score(model, make_task(), greedy.HyperParameters(greedy_k=10**6), 0.9)
    order, names = order_of(scores), list(scores)
    assert order == [(n, i) for n in names for i in range(scores[n].numel()) if "0.mlp.c_fc.bias" not in n or i > 2]


def test_passes_without_a_finite_gradient_are_no_ranking():
    model = make_model()
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    with pytest.raises(NotFinite, match="none of its 2 steps had a finite gradient"):
        score(model, make_task(), greedy.HyperParameters(), share(model, 2))


def test_largest_breaks_ties_by_index():
    values = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, -torch.inf])
    assert greedy.largest(values, 4).tolist() == [1, 3, 2, 4]
    assert greedy.largest(values, 99).tolist() == [1, 3, 2, 4, 5, 0, 6]


@pytest.mark.parametrize("bad", [{"ratio": (1.0,)}, {"batch_size": 1}, {"unlearn_share": 1.0}, {"greedy_k": 0}])
def test_bad_hyper_parameters(bad):
    with pytest.raises(UserError):
        greedy.HyperParameters(**bad)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = make_model().train()
    bias = model.transformer.h[0].mlp.c_fc.bias
    bias.grad = gradient = torch.ones_like(bias)
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    answers = [None] * (4 if fails else 99)  # the fifth pass fails
    hook = model.lm_head.register_forward_hook(lambda *_: answers.pop())
    if fails:
        with pytest.raises(IndexError):
            score(model, make_task(), greedy.HyperParameters(), share(model, 9))
    else:
        score(model, make_task(), greedy.HyperParameters(), share(model, 9))
    hook.remove()
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters()) and bias.grad is gradient
    assert all(p.grad is None for p in model.parameters() if p is not bias)
