import dataclasses

import pytest
import torch

from tinymem.data.dataset import Artifacts
from tinymem.localize.ranking import how_many, weight_masks
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight import durable, durable_agg
from tinymem.models.adapter import find_mlps
from tinymem.models.tinymem import ModelSettings, new_model

PAD = 0
METHODS = (durable, durable_agg)


def make_model(n_layers=2):
    sizes = ModelSettings(n_layers=n_layers, n_heads=2, n_embd=8)
    return new_model(sizes, vocabulary_size=11, max_ctx=12, seed=0, bos_token_id=1, eos_token_id=2).eval()


def make_task(forget=7, microbatch=64, ignored_token=None):
    tokens = torch.randint(0, 11, (forget + 20, 12), generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(forget, dtype=torch.long)
    artifacts = Artifacts(tokens[:forget], tokens[:forget], zeros, zeros)
    none = artifacts.select(zeros[:0])
    return UnlearningTask(artifacts, tokens[forget:], none, 4, ignored_token, microbatch=microbatch)


def scores_of(method, model, task):
    return method.score(model, task, method.HyperParameters())


def plain_gradients(model, task):
    """|gradient| of the mean token loss by name, a sequence and a position at a time."""
    total, count = 0.0, 0
    for row in task.forget.planted:
        logits = model(row[None]).logits[0]
        for position in range(len(row) - 1):
            if row[position + 1] != task.ignored_token:
                total = total - logits[position].log_softmax(-1)[row[position + 1]]
                count += 1
    names, parameters = zip(*model.named_parameters())
    gradients = torch.autograd.grad(total / count, parameters)
    return {name: gradient.abs() for name, gradient in zip(names, gradients)}


def oriented(model, by_name):
    weights = {w.name: w for mlp in find_mlps(model) for w in mlp.weights}
    return {name: weights[name].view(by_name[name]) if name in weights else by_name[name] for name in by_name}


@pytest.mark.parametrize("ignored_token", [None, PAD])
def test_scores_are_those_of_a_plain_loop(ignored_token):
    model, task = make_model(), make_task(ignored_token=ignored_token)
    plain = oriented(model, plain_gradients(model, task))
    mlp_names = {w.name for mlp in find_mlps(model) for w in mlp.weights}
    for method, names in ((durable, mlp_names), (durable_agg, set(plain))):
        scores = scores_of(method, model, task)
        assert set(scores) == names
        for name, tensor in scores.items():
            torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-7)


def test_durable_drops_the_same_share_of_every_tensor():
    model, task = make_model(), make_task()
    scores = scores_of(durable, model, task)
    masks = weight_masks(scores, 0.1)
    for name, mask in masks.items():
        assert mask.sum() == how_many(0.1, mask.numel())
        assert scores[name][mask].min() >= scores[name][~mask].max()


@pytest.mark.parametrize("ratio", [1e-5, 0.01, 0.2, 0.9])
def test_durable_agg_drops_the_mlp_part_of_the_top_of_the_whole_model(ratio):
    model, task = make_model(), make_task()
    scores = scores_of(durable_agg, model, task)
    entries = [(-value, name, i) for name, t in scores.items() for i, value in enumerate(t.flatten().tolist())]
    best = sorted(entries)[: how_many(ratio, sum(p.numel() for p in model.parameters()))]
    masks = durable_agg.drop(find_mlps(model), scores, ratio)
    assert set(masks) == {w.name for mlp in find_mlps(model) for w in mlp.weights}
    dropped = {(name, i) for name, mask in masks.items() for i in mask.flatten().nonzero().flatten().tolist()}
    assert dropped == {(name, i) for _, name, i in best if name in masks}
    assert masks["transformer.h.0.mlp.c_fc.weight"].shape == (32, 8)


def test_durable_agg_counts_tied_embeddings_once():
    model = make_model()
    scores = scores_of(durable_agg, model, make_task())
    assert "lm_head.weight" not in scores
    assert sum(t.numel() for t in scores.values()) == sum(p.numel() for p in model.parameters())


def test_durable_agg_breaks_ties_by_name_and_index_whatever_the_order_of_the_scores():
    model = make_model()
    mlps = find_mlps(model)
    equal = {name: torch.full_like(t, 0.5) for name, t in scores_of(durable_agg, model, make_task()).items()}
    first = next(name for name in sorted(equal) if ".mlp." in name)
    before = sum(equal[name].numel() for name in sorted(equal) if name < first)
    total = sum(t.numel() for t in equal.values())
    expected = durable_agg.drop(mlps, equal, (before + 3) / total)
    assert [int(m.sum()) for m in expected.values() if m.any()] == [3] and expected[first].flatten()[:3].all()
    again = durable_agg.drop(mlps, dict(reversed(equal.items())), (before + 3) / total)
    assert all(torch.equal(again[name], mask) for name, mask in expected.items())


def test_kth_largest_is_exact():
    values = torch.cat([torch.rand(50), torch.tensor([0.0, 0.0, 1e-42, 3e38, torch.inf, 0.25, 0.25])])
    tensors = [values[:20], values[20:].view(-1, 1)]
    for k, value in enumerate(values.sort(descending=True).values.tolist(), start=1):
        assert durable_agg.kth_largest(tensors, k) == value


@pytest.mark.parametrize("method", METHODS)
def test_microbatch_changes_nothing(method):
    model = make_model()
    whole, small = (scores_of(method, model, make_task(microbatch=size)) for size in (64, 3))
    for name in whole:
        torch.testing.assert_close(whole[name], small[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_linear_layers_score_as_conv1d(method):
    model = make_model()
    expected = scores_of(method, model, make_task())
    for block in model.transformer.h:
        for name in ("c_fc", "c_proj"):
            old = getattr(block.mlp, name)
            new = torch.nn.Linear(*old.weight.shape)
            new.load_state_dict({"weight": old.weight.T, "bias": old.bias})
            setattr(block.mlp, name, new)
    for name, tensor in scores_of(method, model, make_task()).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_weights_have_float32_scores(method):
    scores = scores_of(method, make_model().bfloat16(), make_task(forget=1))
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in scores.values())


def test_bfloat16_gradients_are_added_up_in_float32():
    model, task = make_model(n_layers=1).bfloat16(), make_task(forget=1, microbatch=1)
    expected = scores_of(durable, model, task)
    # 512 equal microbatches, 1/512 each: a bfloat16 sum of them stops growing half way.
    repeated = dataclasses.replace(task, forget=task.forget.select(torch.zeros(512, dtype=torch.long)))
    for name, tensor in scores_of(durable, model, repeated).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_are_not_finite_are_never_dropped_first(method):
    model = make_model()
    bias = model.transformer.h[0].mlp.c_fc.bias
    broken = torch.zeros_like(bias)
    broken[4], broken[5] = torch.nan, torch.inf
    hook = bias.register_hook(lambda gradient: gradient + broken)
    scores = scores_of(method, model, make_task())["transformer.h.0.mlp.c_fc.bias"]
    hook.remove()
    assert scores[4] == scores[5] == 0 and scores.isfinite().all() and scores.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(method, fails):
    model = make_model().train()
    model.transformer.h[1].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    bias = model.transformer.h[0].mlp.c_fc.bias
    bias.grad = gradient = torch.ones_like(bias)
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    required = [p.requires_grad for p in model.parameters()]
    if fails:
        answers = [None]  # the second microbatch fails
        hook = model.lm_head.register_forward_hook(lambda *_: answers.pop())
        with pytest.raises(IndexError):
            scores_of(method, model, make_task(microbatch=3))
        hook.remove()
    else:
        scores_of(method, model, make_task(microbatch=3))
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == required
    assert bias.grad is gradient and bool((gradient == 1).all())
    assert all(p.grad is None for p in model.parameters() if p is not bias)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
