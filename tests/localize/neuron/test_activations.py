"""Activations against a loop over sequences and positions."""

from dataclasses import replace

import pytest
import torch

from tinymem.localize.neuron import activations
from tinymem.models.adapter import find_mlps


def scores_of(model, task):
    return activations.score(model, task, activations.HyperParameters())


def looped(model, task):
    scores = []
    for mlp in find_mlps(model):
        seen = []
        handle = mlp.down.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0].detach()))
        values = []
        for tokens, end in zip(task.forget.planted, task.forget.prompt_end.tolist()):
            model(tokens[None])
            for target in range(end, len(tokens)):
                if tokens[target] != task.ignored_token:
                    values.append(seen[-1][target - 1])
        handle.remove()
        mean = torch.stack(values).mean(0)
        columns = mlp.output.view().T
        scores.append(torch.stack([mean[j].abs() * columns[j].pow(2).sum().sqrt() for j in range(mlp.inner_dim)]))
    return scores


def with_prompts(task, ends):
    return replace(task, forget=replace(task.forget, prompt_end=torch.tensor(ends)))


def assert_close(scores, expected):
    for score, other in zip(scores, expected, strict=True):
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, other, atol=1e-6, rtol=1e-4)


def test_exact_on_each_architecture(any_model, tiny_task):
    task = tiny_task(5)
    assert_close(scores_of(any_model, task), looped(any_model, task))


@pytest.mark.parametrize("ignored_token", [None, 4])
def test_every_sequence_has_its_own_window(any_model, tiny_task, ignored_token):
    task = with_prompts(tiny_task(5, ignored_token=ignored_token), [1, 3, 8, 10, 11])
    assert_close(scores_of(any_model, task), looped(any_model, task))


def test_conv1d_and_linear_agree(tiny_model, tiny_task, linear_twin):
    model, task = tiny_model("gpt2"), tiny_task(5)
    assert_close(scores_of(model, task), scores_of(linear_twin(model), task))


@pytest.mark.parametrize("forget", [1, 5])
def test_microbatch_does_not_matter(any_model, tiny_task, forget):
    task = tiny_task(forget)
    assert_close(scores_of(any_model, replace(task, microbatch=2)), scores_of(any_model, task))


def test_bfloat16(any_model, tiny_task):
    for score in scores_of(any_model.bfloat16(), tiny_task(3)):
        assert score.dtype == torch.float32 and score.isfinite().all()


def test_leaves_the_model_as_it_was(any_model, tiny_task, snapshot):
    any_model.train()
    before = snapshot(any_model)
    scores_of(any_model, tiny_task(2))
    assert snapshot(any_model) == before
