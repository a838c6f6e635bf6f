import pytest
import torch

from tinymem.errors import NotFinite
from tinymem.localize.ranking import how_many
from tinymem.localize.weight.edge_popup import ScoreOptimizer, learn_subnet
from tinymem.models.adapter import find_mlps

SGD = ScoreOptimizer(lr=0.1, momentum=0.9, weight_decay=0.05)


def matrices(model):
    return [matrix for mlp in find_mlps(model) for matrix in mlp.matrices]


def given_gradients(model, steps, seed=0):
    """Random gradients of every MLP matrix for a number of steps, (out, in)."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(m.view().shape, generator=generator) for m in matrices(model)] for _ in range(steps)]


def learn(model, batches, ratio=0.3, optimizer=SGD, seen=None):
    """learn_subnet where a batch holds the gradients themselves; `seen` collects what the model shows at each step."""

    def step(gradients, parameters):
        assert all(parameter is matrix.parameter for parameter, matrix in zip(parameters, matrices(model), strict=True))
        if seen is not None:
            seen.append([matrix.view().clone() for matrix in matrices(model)])
        return [m.view(gradient).to(m.parameter.dtype).clone() for m, gradient in zip(matrices(model), gradients)]

    return learn_subnet(model, batches, step, ratio, optimizer, torch.Generator().manual_seed(3))


def plain_edge_popup(weights, batches, ratio, optimizer):
    """The same with autograd through weight * keep(|score|), torch's SGD, full sorts. All masks, the last one final."""

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(context, score):
            kept = torch.ones(score.numel())
            kept[score.flatten().sort(stable=True).indices[: how_many(ratio, score.numel())]] = 0
            return kept.view(score.shape)

        @staticmethod
        def backward(context, gradient):
            return gradient

    generator, scores, masks = torch.Generator().manual_seed(3), [], []
    for weight in weights:
        drawn = torch.rand(weight.shape, generator=generator) * 2 - 1
        scores.append((drawn / weight.shape[1] ** 0.5).requires_grad_())
    sgd = torch.optim.SGD(scores, optimizer.lr, optimizer.momentum, weight_decay=optimizer.weight_decay)
    for gradients in batches:
        masks.append([Keep.apply(score.abs()) == 0 for score in scores])
        sgd.zero_grad()
        for weight, score, gradient in zip(weights, scores, gradients):
            (weight.float() * Keep.apply(score.abs()) * gradient.to(weight.dtype).float()).sum().backward()
        sgd.step()
    return masks + [[Keep.apply(score.abs()) == 0 for score in scores]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_plain_autograd(any_model, dtype, momentum):
    any_model.to(dtype)
    optimizer = ScoreOptimizer(lr=0.1, momentum=momentum, weight_decay=0.05)
    weights = [matrix.view().clone() for matrix in matrices(any_model)]
    batches, seen = given_gradients(any_model, steps=6), []
    masks = learn(any_model, batches, optimizer=optimizer, seen=seen)
    *shown, final = plain_edge_popup(weights, batches, 0.3, optimizer)
    for model_weights, expected in zip(seen, shown):
        for shown_weight, weight, mask in zip(model_weights, weights, expected):
            assert torch.equal(shown_weight, weight.masked_fill(mask, 0))
    assert all(torch.equal(masks[m.name], mask) for m, mask in zip(matrices(any_model), final))
    assert any(not torch.equal(a, b) for a, b in zip(shown[0], final))  # the steps mattered


@pytest.mark.parametrize("ratio", [1e-5, 0.01, 0.3, 0.999])
def test_keeps_the_right_number(any_model, ratio):
    seen = []
    masks = learn(any_model, given_gradients(any_model, 2), ratio, seen=seen)
    for index, matrix in enumerate(matrices(any_model)):
        total = matrix.view().numel()
        assert int(masks[matrix.name].sum()) == how_many(ratio, total)
        assert all(int((weights[index] == 0).sum()) == how_many(ratio, total) for weights in seen)
    assert set(masks) == {matrix.name for matrix in matrices(any_model)}


def test_equal_scores_are_dropped_by_index(tiny_model):
    decay = ScoreOptimizer(lr=1.0, momentum=0.0, weight_decay=1.0)  # score - 1.0 * score = 0 everywhere
    model = tiny_model()
    masks = learn(model, [[torch.zeros(m.view().shape) for m in matrices(model)]], 0.25, decay)
    for mask in masks.values():
        assert mask.flatten().nonzero().flatten().tolist() == list(range(mask.numel() // 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_without_a_finite_gradient_is_skipped(tiny_model, bad):
    model = tiny_model()
    batches = given_gradients(model, 3)
    broken = [gradient.clone() for gradient in batches[0]]
    broken[1][0, 0] = bad
    expected, masks = learn(model, batches), learn(model, [batches[0], broken, *batches[1:]])
    assert all(torch.equal(masks[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_as_it_was(any_model, snapshot, dtype, fails):
    any_model.to(dtype).train()
    any_model.get_submodule(matrices(any_model)[0].name.rsplit(".", 1)[0]).eval()
    for index, parameter in enumerate(any_model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if index % 3 == 0 else None
    matrices(any_model)[0].view()[0, :3] = torch.tensor([float("nan"), -0.0, float("inf")])
    before, batches = snapshot(any_model), given_gradients(any_model, 2)
    if fails:
        with pytest.raises(TypeError):
            learn(any_model, [*batches, None])
    else:
        with pytest.raises(NotFinite, match="its scores are not finite"):  # those of the weight that is NaN
            learn(any_model, batches)
    assert snapshot(any_model) == before


def test_only_the_mlp_matrices_collect_gradients(tiny_model, tiny_task):
    model, tokens = tiny_model().train(), tiny_task().retain
    seen = []

    def step(batch, parameters):
        assert not model.training
        model(batch, labels=batch).loss.backward()
        seen.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
        return [parameter.grad for parameter in parameters]

    masks = learn_subnet(model, [tokens], step, 0.3, SGD, torch.Generator())
    assert seen == [set(masks)]


def test_scores_are_kaiming_uniform(tiny_model):
    """With a gradient of 0 the mask is that of the initial scores: uniform, drawn alike for Conv1D and Linear."""
    model = tiny_model()
    masks = learn(model, [], 0.5)
    generator = torch.Generator().manual_seed(3)
    for matrix in matrices(model):
        drawn = (torch.rand(matrix.view().shape, generator=generator) * 2 - 1).abs()
        assert torch.equal(masks[matrix.name], drawn < drawn.flatten().sort().values[drawn.numel() // 2])
