"""Directions, their normalisation, and the grid, on models whose landscape is known."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tinymem.errors import UserError
from tinymem.metrics.landscape import LandscapeSettings, filter_normalised, grid_losses, moved, random_directions
from tinymem.metrics.quality import quality


class Bowl(torch.nn.Module):
    """loss = 1/2 w' A w, w the entries of a matrix (rows, 3)."""

    def __init__(self, rows: int = 2, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(rows, 3, generator=generator, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.ones(rows, dtype=torch.float64))
        root = torch.randn(3 * rows, 3 * rows, generator=generator, dtype=torch.float64)
        self.curvature = root @ root.T

    def loss(self) -> float:
        w = self.weight.detach().flatten()
        return (0.5 * w @ self.curvature @ w).item()


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    sizes = dict(vocab_size=14, n_positions=12, n_embd=8, n_layer=2, n_head=2)
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=10, eos_token_id=11)).eval()


def test_the_grid_of_a_quadratic_is_its_closed_form():
    bowl = Bowl()
    first, second = random_directions(bowl, seed=3)
    coordinates = LandscapeSettings(points=5, distance=2.0).coordinates
    assert coordinates == [-2.0, -1.0, 0.0, 1.0, 2.0]
    losses = list(grid_losses(bowl, (first, second), coordinates, Bowl.loss))
    w, d, e = (tensor.flatten().double() for tensor in (bowl.weight.detach(), first["weight"], second["weight"]))
    a = bowl.curvature
    for i, x in enumerate(coordinates):
        for j, y in enumerate(coordinates):
            expected = 0.5 * w @ a @ w + x * d @ a @ w + y * e @ a @ w
            expected += 0.5 * x * x * d @ a @ d + 0.5 * y * y * e @ a @ e + x * y * d @ a @ e
            assert losses[5 * i + j] == pytest.approx(expected.item(), rel=1e-9)


def test_a_filter_is_as_long_as_the_models_own():
    bowl = Bowl(rows=3)
    bowl.weight.data[1] = 0.0  # an empty filter does not move
    scaled = filter_normalised(bowl, {"weight": torch.tensor([[3.0, 0.0, 4.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])})
    length = bowl.weight[0].norm().item()
    expected = torch.tensor([[0.6 * length, 0.0, 0.8 * length], [0.0] * 3, [0.0] * 3])
    torch.testing.assert_close(scaled["weight"].float(), expected)


def test_filters_of_a_transformer_lead_into_one_output_unit(gpt2):
    for direction in random_directions(gpt2, seed=0):
        assert set(direction) == {name for name, p in gpt2.named_parameters() if p.dim() == 2}  # no biases, no norms
        for name, tensor in direction.items():
            weight = dict(gpt2.named_parameters())[name].detach()
            in_out = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))  # Conv1D
            torch.testing.assert_close(tensor.norm(dim=0 if in_out else 1), weight.norm(dim=0 if in_out else 1))


def test_seeds(gpt2):
    (a, b), (c, _), (other, _) = (random_directions(gpt2, seed) for seed in (0, 0, 1))
    name = "transformer.wte.weight"
    assert torch.equal(a[name], c[name]) and not torch.equal(a[name], other[name])
    cosine = torch.nn.functional.cosine_similarity(a[name].flatten(), b[name].flatten(), dim=0)
    assert abs(cosine) < 0.3  # the two directions are drawn independently of each other


def test_the_middle_is_the_model_itself_and_the_weights_come_back(gpt2):
    tokens = torch.randint(14, (6, 12), generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}

    def loss(model) -> float:
        return quality(model, tokens, pad=13, pad_counts=True).mean_loss

    directions = random_directions(gpt2, seed=0)
    losses = []
    for value in grid_losses(gpt2, directions, [-1.0, 0.0, 1.0], loss):
        losses.append(value)
        assert all(torch.equal(tensor, before[name]) for name, tensor in gpt2.state_dict().items())
    assert losses[4] == loss(gpt2) and len(set(losses)) == 9
    assert list(grid_losses(gpt2, directions, [-1.0, 0.0, 1.0], loss, start=7)) == losses[7:]

    def broken(model) -> float:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        next(grid_losses(gpt2, directions, [-1.0, 0.0, 1.0], broken))
    assert all(torch.equal(tensor, before[name]) for name, tensor in gpt2.state_dict().items())


def test_a_step_moves_the_weights_along_both_directions():
    bowl = Bowl()
    start = bowl.weight.detach().clone()
    ones, twos = ({"weight": torch.full((2, 3), value)} for value in (1.0, 2.0))
    with moved(bowl, (ones, twos), (0.5, -1.0)):
        torch.testing.assert_close(bowl.weight.detach(), start - 1.5)
    with pytest.raises(KeyError), moved(bowl, ({"missing": torch.ones(1)},), (1.0,)):
        pass


@pytest.mark.parametrize("wrong", [{"points": 20}, {"points": 1}, {"distance": 0.0}, {"distance": math.inf}])
def test_settings_that_make_no_grid(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
        LandscapeSettings(**wrong)
