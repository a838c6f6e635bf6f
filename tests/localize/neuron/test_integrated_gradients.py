"""Integrated Gradients against a loop over layers, sequences, positions and steps, and its completeness."""

from dataclasses import replace

import pytest
import torch

from tinymem.errors import UserError
from tinymem.localize.neuron import integrated_gradients
from tinymem.models.adapter import find_mlps


def scores_of(model, task, steps=3):
    return integrated_gradients.score(model, task, integrated_gradients.HyperParameters(ig_steps=steps))


def probability(model, mlp, tokens, position, factor):
    """P(next token) at a position with the neurons there scaled, and the neurons: as they are, and as scaled."""
    kept = {}

    def scale(module, inputs):
        hidden = inputs[0].detach().clone()
        kept["value"] = hidden[0, position].clone()
        kept["scaled"] = (factor * kept["value"]).requires_grad_()
        return torch.cat([hidden[:, :position], kept["scaled"][None, None], hidden[:, position + 1 :]], 1)

    handle = mlp.down.register_forward_pre_hook(scale)
    logits = model(tokens[None]).logits[0, position]
    handle.remove()
    return logits.softmax(-1)[tokens[position + 1]], kept["value"], kept["scaled"]


def looped(model, task, steps):
    scores = []
    for mlp in find_mlps(model):
        attributions = []
        for tokens, end in zip(task.forget.planted, task.forget.prompt_end.tolist()):
            for target in range(end, len(tokens)):
                if tokens[target] == task.ignored_token:
                    continue
                gradients = []
                for step in range(1, steps + 1):
                    p, value, scaled = probability(model, mlp, tokens, target - 1, step / steps)
                    gradients.append(torch.autograd.grad(p, scaled)[0])
                attributions.append(value * torch.stack(gradients).mean(0))
        scores.append(torch.stack(attributions).mean(0))
    return scores


def with_prompts(task, ends):
    return replace(task, forget=replace(task.forget, prompt_end=torch.tensor(ends)))


def assert_close(scores, expected):
    for score, other in zip(scores, expected, strict=True):
        assert score.dtype == torch.float32
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(score, other, atol=1e-7, rtol=1e-3)


def test_exact_on_each_architecture(any_model, tiny_task):
    task = tiny_task(3)
    assert_close(scores_of(any_model, task), looped(any_model, task, 3))


def test_one_step_is_gradient_times_value(tiny_model, tiny_task):
    model, task = tiny_model("gpt2", layers=3), tiny_task(2)
    assert_close(scores_of(model, task, 1), looped(model, task, 1))


@pytest.mark.parametrize("ignored_token", [None, 4])
def test_every_sequence_has_its_own_window(any_model, tiny_task, ignored_token):
    task = with_prompts(tiny_task(4, ignored_token=ignored_token), [1, 5, 10, 11])
    assert_close(scores_of(any_model, task, 2), looped(any_model, task, 2))


def test_attributions_are_complete(any_model, tiny_task):
    """Their sum tends to f(x) - f(0), where f(0) has all neurons of the layer at 0 at that position."""
    task = with_prompts(tiny_task(1), [11])  # one token is left to predict
    tokens = task.forget.planted[0]
    few, many = scores_of(any_model, task, 10), scores_of(any_model, task, 500)
    for layer, mlp in enumerate(find_mlps(any_model)):
        with torch.no_grad():
            ends = [probability(any_model, mlp, tokens, 10, factor)[0] for factor in (1.0, 0.0)]
        change = ends[0] - ends[1]
        errors = [(scores[layer].sum() - change).abs() for scores in (few, many)]
        assert errors[1] < 0.01 * many[layer].abs().sum()
        assert errors[1] < 0.1 * errors[0]


def test_conv1d_and_linear_agree(tiny_model, tiny_task, linear_twin):
    model, task = tiny_model("gpt2"), tiny_task(3)
    assert_close(scores_of(model, task), scores_of(linear_twin(model), task))


@pytest.mark.parametrize("forget", [1, 5])
@pytest.mark.parametrize("microbatch", [1, 2, 3])
def test_microbatch_does_not_matter(any_model, tiny_task, forget, microbatch):
    task = tiny_task(forget)
    assert_close(scores_of(any_model, replace(task, microbatch=microbatch)), scores_of(any_model, task))


def test_microbatch_bounds_the_rows(tiny_task):
    for microbatch in (2, 3, 7, 64):
        task = tiny_task(20, microbatch=microbatch)
        for tokens, positions, _, scales in integrated_gradients._batches(task, 10):
            rows = len(tokens) * (tokens.shape[1] + positions.shape[1] * len(scales))
            assert rows <= microbatch * tokens.shape[1]


def test_a_model_without_position_ids_is_refused(tiny_model, tiny_task):
    model = tiny_model("gpt2")
    forward = model.transformer.forward
    model.transformer.forward = lambda *args, **kwargs: forward(*args, **kwargs | {"attention_mask": None})
    with pytest.raises(UserError, match="mask or position ids"):
        scores_of(model, tiny_task(2))


def test_works_without_a_measured_position(tiny_model, tiny_task):
    for score in scores_of(tiny_model("gpt2"), with_prompts(tiny_task(1), [12])):
        assert not score.any()


def test_bfloat16(any_model, tiny_task):
    for score in scores_of(any_model.bfloat16(), tiny_task(3)):
        assert score.dtype == torch.float32 and score.isfinite().all() and score.any()


def test_leaves_the_model_as_it_was(any_model, tiny_task, snapshot):
    any_model.train()
    next(any_model.parameters()).grad = torch.ones_like(next(any_model.parameters()))
    before = snapshot(any_model)
    with torch.no_grad():
        scores_of(any_model, tiny_task(2))
    after = snapshot(any_model)
    assert str(after) == str(before)
