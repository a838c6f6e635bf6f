"""Integrated Gradients against a loop over layers, sequences, positions and steps, and its completeness."""

from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, SIZES, build

from tinymem.errors import UserError
from tinymem.localize.neuron import integrated_gradients
from tinymem.localize.registry import METHODS
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


def test_microbatch_bounds_the_rows(tiny_model, tiny_task):
    model = tiny_model()
    for microbatch in (2, 3, 7, 64):
        task = tiny_task(20, microbatch=microbatch)
        for tokens, positions, _, scales in integrated_gradients._batches(model, task, 10):
            rows = len(tokens) * (tokens.shape[1] + positions.shape[1] * len(scales))
            assert rows <= microbatch * tokens.shape[1]


def refused(model, task):
    """Before anything runs, also where it chooses the weights that an objective may change."""
    mask = METHODS["npo"].hyper_parameters(update_mask=("integrated_gradients", "0.1"), weight_decay=0.0)
    for method, hp in [("integrated_gradients", integrated_gradients.HyperParameters()), ("npo", mask)]:
        with pytest.raises(UserError, match="position ids and a mask of pairs of tokens"):
            METHODS[method].check(model, task, hp)
    return True


def test_a_model_without_position_ids_is_refused(tiny_model, tiny_task):
    model = tiny_model("gpt2")
    forward = model.transformer.forward
    model.transformer.forward = lambda *args, **kwargs: forward(*args, **kwargs | {"attention_mask": None})
    assert refused(model, tiny_task(2))
    with pytest.raises(UserError, match="position ids and a mask of pairs of tokens"):
        scores_of(model, tiny_task(2))


@pytest.mark.parametrize("architecture, sizes", [("bloom", {}), ("mpt", {}), ("falcon", {"alibi": True})])
def test_models_with_alibi_are_refused(tiny_task, architecture, sizes):
    assert refused(build(architecture, ARCHITECTURES[architecture] | sizes), tiny_task(2))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neo", "gemma3_text", "phi3", "falcon"])
def test_a_check_leaves_the_model_as_it_was(tiny_task, snapshot, architecture):
    model = build(architecture).train()
    before = snapshot(model)
    integrated_gradients.check(model, tiny_task(2), integrated_gradients.HyperParameters())
    assert snapshot(model) == before


MIXED = dict(layer_types=["sliding_attention", "full_attention"])
QWEN = dict(use_sliding_window=True, max_window_layers=1)
CHUNKS = dict(moe_layers=[], intermediate_size_mlp=24, attention_chunk_size=5, no_rope_layers=[0, 1])
WINDOWS = [
    ("mistral", {}), ("ministral", {}), ("starcoder2", {}), ("phi3", {}), ("gemma2", {}), ("gemma3_text", {}),
    ("gemma3_text", MIXED), ("cohere2", MIXED | {"logit_scale": 1.0}), ("olmo3", MIXED), ("exaone4", MIXED),
    ("qwen2", QWEN), ("qwen3", QWEN), ("qwen2", QWEN | {"use_sliding_window": False}), ("llama4_text", CHUNKS),
]  # fmt: skip


@pytest.mark.parametrize("architecture, sizes", WINDOWS)
def test_exact_where_rows_are_longer_than_the_window(tiny_task, architecture, sizes):
    model, task = build(architecture, SIZES | {"sliding_window": 5} | sizes), tiny_task(2)
    assert_close(scores_of(model, task, 2), looped(model, task, 2))


@pytest.mark.parametrize("most", [{"window_size": 18}, {"window_size": 29}, {"max_position_embeddings": 18}])
def test_copies_fit_in_the_places_that_the_attention_of_gpt_neo_holds(tiny_task, most):
    """Rows of 12 tokens with copies of 6: one or two steps in a pass."""
    model, task = build("gpt_neo", ARCHITECTURES["gpt_neo"] | most), tiny_task(2)
    integrated_gradients.check(model, task, integrated_gradients.HyperParameters())
    assert_close(scores_of(model, task), looped(model, task, 3))


@pytest.mark.parametrize("most", [{"window_size": 17}, {"max_position_embeddings": 17}])
def test_rows_that_leave_no_room_for_copies_are_refused(tiny_task, most):
    model, task = build("gpt_neo", ARCHITECTURES["gpt_neo"] | most), tiny_task(2)
    for step in (integrated_gradients.check, integrated_gradients.passes, integrated_gradients.score):
        with pytest.raises(UserError, match="6 tokens in rows of 12, as its attention holds only 17"):
            step(model, task, integrated_gradients.HyperParameters())


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
