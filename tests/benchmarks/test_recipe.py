"""The recipe that the benchmarks measure against computes what the library computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from case import SPECIALS, forward_flops
from cases_training import random_tokens
from recipe import data, memorization, neuron, training, weight
from recipe.model import mlp_matrices, mlp_parameters, stock_copy

from tinymem.data import numbers
from tinymem.data.build import build_dataset
from tinymem.data.dataset import Artifacts
from tinymem.data.settings import DataSettings
from tinymem.localize.learning import unlearn_batches
from tinymem.localize.neuron import integrated_gradients, zero_out
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight import balanced_subnet, greedy, obs, subnet
from tinymem.metrics.memorization import memorized
from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.train import training_step

LENGTH, PROMPT = 16, 6


@pytest.fixture
def model():
    """Two layers, width 16, 64 neurons a layer."""
    return new_model(ModelSettings(n_layers=2, n_embd=16, n_heads=2), 14, LENGTH, seed=0, **SPECIALS).eval()


@pytest.fixture
def task():
    """Five sequences to forget and seven to keep."""
    rows = torch.randint(14, (12, LENGTH), generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(5, dtype=torch.long)
    unlearn = Artifacts(rows[:5], rows[:5], zeros + PROMPT, zeros)
    return UnlearningTask(unlearn, rows[5:], unlearn.select(zeros[:0]), continuation=4)


def test_sequences_are_encoded_alike():
    ours = numbers.encode(numbers.sequence_values("increment", 7, 1200), 150)
    assert ours.tolist() == [data.encode(data.sequence(start, 7)) for start in range(1200)]


def test_datasets_have_the_same_sizes():
    train, tests = data.build(main=300, extra=60, test=20, noise=30)
    extras = {f"num_{constant}": 60 for constant in (2, 3, 4, 5)}
    ours = build_dataset(DataSettings(num_7=300, **extras, num_test=20, num_noise=30))
    assert train.shape == ours.sequences.shape
    assert [len(rows) for rows in tests] == [len(rows) for rows in ours.tests.values()]


def test_losses_and_gradients_of_three_steps(model, task):
    """Gradients, not weights: Adam blows up the rounding of those that are truly 0, as that of the keys' bias."""
    stock, settings = stock_copy(model.train(), "eager"), TrainingSettings()
    optimizers = new_optimizer(model, settings), training.new_optimizer(stock)
    for _ in range(3):
        ours = training_step(model, optimizers[0], task.retain, torch.arange(7), settings, (), None)
        assert training.step(stock, optimizers[1], task.retain) == pytest.approx(ours, rel=1e-5)
    for one, other in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-3)


def test_batches_hold_every_sequence_once():
    sequences = [[i] * 4 for i in range(6)]
    batches = training.batches(sequences, 2)
    seen = torch.cat([next(batches) for _ in range(3)])
    assert seen.shape == (6, 4) and sorted(seen[:, 0].tolist()) == list(range(6))


@pytest.mark.parametrize("cache, end", [(False, LENGTH), (True, PROMPT + 4)])
def test_the_same_sequences_are_memorized(model, task, cache, end):
    """Three of five are made the model's own continuation."""
    clean = task.forget.planted
    prompts = clean[:, :PROMPT]
    made = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_length=LENGTH, do_sample=False, eos_token_id=None
    )
    planted = torch.where(torch.arange(5)[:, None] < 3, made, clean)
    ours = memorized(model, replace(task.forget, planted=planted), 4)
    assert ours.tolist()[:3] == [True] * 3 and not ours.all()
    theirs = memorization.memorized(stock_copy(model, "eager"), clean, planted, PROMPT, 4, end, cache)
    assert torch.equal(theirs, ours)


def test_zero_out(model, task):
    ours = zero_out.score(model, task, zero_out.HyperParameters())
    some = [(layer, index) for layer in range(2) for index in range(0, 64, 9)]
    theirs = neuron.zero_out(stock_copy(model, "eager"), task.forget.planted, some)
    expected = torch.stack([ours[layer][index] for layer, index in some])
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(torch.tensor(theirs), expected, atol=2e-6, rtol=1e-3)


def test_integrated_gradients(model, task):
    ours = integrated_gradients.score(model, task, integrated_gradients.HyperParameters(ig_steps=3))
    stock, places = stock_copy(model, "eager"), range(PROMPT - 1, LENGTH - 1)
    for layer in range(2):
        theirs = [
            neuron.integrated_gradients(stock, tokens, layer, position, 3)
            for tokens in task.forget.planted
            for position in places
        ]
        assert ours[layer].abs().max() > 1e-5
        torch.testing.assert_close(torch.stack(theirs).mean(0), ours[layer], atol=1e-7, rtol=1e-3)


def test_obs(model, task):
    """In float64 and with more damping than usual: the recipe's float32 updates drift."""
    block, damp = 50, 1e-3
    ours = obs.score(model, task, obs.HyperParameters(block_size=block, damp=damp))
    stock = stock_copy(model, "eager").double()
    inverses = {name: inverse.double() for name, inverse in weight.new_inverses(stock, block, damp).items()}
    weight.add_gradients(stock, inverses, task.forget.planted, number=5)
    theirs = weight.obs_scores(stock, inverses)
    assert set(theirs) == set(ours)
    for name, scores in ours.items():
        torch.testing.assert_close(theirs[name].float(), scores, atol=1e-12, rtol=1e-2)


@pytest.mark.parametrize("balanced", [False, True])
def test_subnet_masks(model, task, balanced):
    settings = dict(batch_size=4, epochs=3, dtype="float32")
    generator = task.generator()
    drawn = {name: torch.rand(matrix.T.shape, generator=generator) for name, matrix in mlp_matrices(model).items()}
    scores = {name: ((2 * rand - 1) / rand.shape[1] ** 0.5).T for name, rand in drawn.items()}
    if balanced:
        hp = balanced_subnet.HyperParameters(**settings)
        pairs = balanced_subnet.batches(task, hp, generator)
        batches = [[(-0.3, unlearn), (0.7, retain)] for unlearn, retain in pairs]
        masks = balanced_subnet.learn(model, task, hp, 0.3)
    else:
        batches = [[(-1.0, tokens)] for tokens in unlearn_batches(task, 4, 3, generator)]
        masks = subnet.learn(model, task, subnet.HyperParameters(**settings), 0.3)
    stock = stock_copy(model, "eager")
    learned, optimizer = weight.new_subnet(stock, scores)
    for sides in batches:
        weight.subnet_step(stock, learned, optimizer, 0.3, sides)
    for name, mask in masks.items():
        score = learned[name].detach().T.abs()
        dropped = torch.zeros(score.numel(), dtype=torch.bool)
        dropped[score.flatten().argsort()[: round(0.3 * score.numel())]] = True
        assert (dropped.view(score.shape) != mask).float().mean() < 0.01
        before = scores[name].T.abs().flatten().argsort()[: int(mask.sum())]
        assert not mask.flatten()[before].all()  # something was learned


def test_greedy_takes_the_same_entries(model, task):
    """Batches as large as the sets, so that both sides see all sequences in every step."""
    task = replace(task, retain=task.retain[:5])
    ratio = 3.2 / sum(parameter.numel() for parameter in model.parameters())
    ours = greedy.score(model, task, greedy.HyperParameters(ratio=(ratio,), batch_size=10, unlearn_share=0.5))
    stock = stock_copy(model, "eager")
    theirs = [weight.greedy_step(stock, task.forget.planted, task.retain) for _ in range(3)]
    for rank, (name, place) in enumerate(theirs):
        stored = ours[name].T if name.endswith("weight") else ours[name]
        chosen = stored.flatten()[place]
        assert chosen > -torch.inf
        assert [int((scores > chosen).sum()) for scores in ours.values()].count(0) >= len(ours) - rank
    assert sum(int((scores > -torch.inf).sum()) for scores in ours.values()) == 3
    assert set(ours) == set(mlp_parameters(stock))


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = new_model(ModelSettings(n_layers=2), 14, 150, seed=0, **SPECIALS)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stock_copy(model, "eager")(random_tokens(2))
    assert counter.get_total_flops() == forward_flops(2, 2)


def test_noise_is_rare_and_small():
    values = [5000] * 4000
    steps = np.array(data.noised(values)) - 5000
    assert set(steps.tolist()) == {-1, 0, 1} and 0.85 < (steps == 0).mean() < 0.95
