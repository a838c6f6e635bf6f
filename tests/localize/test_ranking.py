import copy

import pytest
import torch

from tinymem.localize.ranking import how_many, neuron_masks, top, weight_masks
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied, apply, describe


def marked(scores, count):
    return top(torch.as_tensor(scores), count).nonzero().flatten().tolist()


def random_scores(mlps):
    return [torch.rand(mlp.inner_dim, generator=torch.Generator().manual_seed(mlp.layer)) for mlp in mlps]


class TestTop:
    def test_marks_the_highest(self):
        assert marked([0.1, 0.9, -1.0, 0.5], 2) == [1, 3]

    def test_ties_go_to_the_lowest_index(self):
        assert marked([1.0, 2.0, 1.0, 1.0, 2.0], 3) == [0, 1, 4]
        assert marked([0.0] * 6, 4) == [0, 1, 2, 3]
        assert marked([0.0, -0.0, 0.0], 2) == [0, 1]

    def test_nan_ranks_lowest(self):
        nan, inf = float("nan"), float("inf")
        assert marked([nan, -5.0, nan, inf], 2) == [1, 3]
        assert marked([nan, -5.0, nan, inf], 3) == [0, 1, 3]
        assert marked([nan] * 3, 1) == [0]

    @pytest.mark.parametrize("count, expected", [(-1, []), (0, []), (3, [0, 1, 2]), (9, [0, 1, 2])])
    def test_none_and_all(self, count, expected):
        assert marked([float("nan"), 1.0, 2.0], count) == expected

    def test_no_scores(self):
        assert top(torch.empty(0, 3), 0).shape == (0, 3)

    def test_equals_a_stable_sort(self):
        scores = torch.randint(0, 9, (7, 11), generator=torch.Generator().manual_seed(0)).float()
        for count in range(78):
            expected = torch.zeros(77, dtype=torch.bool)
            expected[scores.flatten().sort(descending=True, stable=True).indices[:count]] = True
            assert torch.equal(top(scores, count), expected.view(7, 11))

    def test_order_of_indices_does_not_depend_on_memory_layout(self):
        assert torch.equal(top(torch.zeros(3, 4).T, 5), top(torch.zeros(4, 3), 5))

    def test_precision_of_the_scores(self):
        assert marked(torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64), 1) == [1]
        assert marked(torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16), 1) == [2]
        assert marked(torch.tensor([3, 2, 1]), 1) == [0]

    def test_scores_with_a_gradient(self):
        assert not top(torch.rand(4, requires_grad=True), 2).requires_grad


def test_how_many_rounds_to_the_nearest():
    assert how_many(0.1, 30) == 3  # 3.0000000000000004 and 2.9999999999999996 are both 3
    assert how_many(0.29, 100) == 29
    assert how_many(1e-5, 100) == 0


def test_neuron_masks_drop_whole_neurons_and_nothing_else(any_model):
    before = copy.deepcopy(any_model.state_dict())
    mlps = find_mlps(any_model)
    scores = random_scores(mlps)
    masks = neuron_masks(mlps, scores, 0.25)
    assert set(masks) == {w.name for mlp in mlps for w in (*mlp.inputs, *mlp.biases)}
    apply(any_model, Zeros(masks))
    for name, tensor in any_model.state_dict().items():
        changed = tensor != before[name]
        assert not changed.any() or name in masks
        assert (tensor[changed] == 0).all()
    for mlp, layer_scores in zip(mlps, scores):
        dropped = layer_scores.topk(mlp.inner_dim // 4).indices
        for matrix in mlp.inputs:
            assert (matrix.view() == 0).all(1).nonzero().flatten().tolist() == sorted(dropped.tolist())


def test_dropped_neurons_are_silent(any_model):
    mlps, seen = find_mlps(any_model), []
    scores = random_scores(mlps)
    for mlp in mlps:
        mlp.down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with applied(any_model, Zeros(neuron_masks(mlps, scores, 0.25))), torch.no_grad():
        any_model(torch.arange(12)[None])
    for mlp, hidden, layer_scores in zip(mlps, seen, scores):
        assert (hidden[..., top(layer_scores, mlp.inner_dim // 4)] == 0).all()


def test_neuron_masks_need_scores_for_every_layer(tiny_model):
    mlps = find_mlps(tiny_model())
    with pytest.raises(ValueError):
        neuron_masks(mlps, [torch.rand(32)], 0.25)


def test_a_ratio_that_rounds_to_no_neuron_drops_none(tiny_model):
    model = tiny_model()
    masks = neuron_masks(find_mlps(model), random_scores(find_mlps(model)), 0.001)
    assert describe(model, Zeros(masks))["percent_zeroed"] == 0


def test_weight_masks_take_the_same_share_of_every_tensor(any_model):
    mlps = find_mlps(any_model)
    scores = {w.name: torch.rand(w.view().shape) for mlp in mlps for w in mlp.weights}
    masks = weight_masks(scores, 0.3)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        name: round(0.3 * tensor.numel()) for name, tensor in scores.items()
    }
    assert all(scores[name][mask].min() >= scores[name][~mask].max() for name, mask in masks.items())


def test_orientation(tiny_model, linear_twin):
    conv, tokens = tiny_model(), torch.arange(12)[None]
    linear = linear_twin(conv)
    scores = {w.name: torch.rand(w.view().shape) for mlp in find_mlps(conv) for w in mlp.weights}
    for model in (conv, linear):
        apply(model, Zeros(weight_masks(scores, 0.5)))
    for stored, shown in zip(find_mlps(conv), find_mlps(linear)):
        assert all(torch.equal(a.view(), b.parameter) for a, b in zip(stored.weights, shown.weights))
    assert torch.allclose(conv(tokens).logits, linear(tokens).logits, atol=1e-5)
