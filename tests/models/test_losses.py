"""The chunked output layer against the plain one: same losses, same gradients, same arg-maxes."""

import pytest
import torch

from tinymem.models import cross_entropy, losses

VOCABULARY = losses.LARGE_VOCABULARY


def tiny(model_type: str, **settings):
    """A randomly initialised one-layer model of this architecture with a large vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    widths = dict(intermediate_size=32, num_key_value_heads=2, head_dim=8, max_position_embeddings=32)
    if model_type == "gpt_neo":
        widths = dict(attention_types=[[["global"], 1]], num_layers=1, num_heads=2, max_position_embeddings=32)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **ids, **widths, **settings}))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", 3 * VOCABULARY)  # three positions a chunk


@pytest.fixture
def tokens():
    return torch.randint(0, VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int32)


def plainly(monkeypatch, function, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(losses, "PLAIN_OUTPUT_LAYER", frozenset())
        return function(*arguments)


@pytest.mark.parametrize("model_type", sorted(losses.PLAIN_OUTPUT_LAYER))
def test_every_listed_architecture_has_a_plain_output_layer(model_type, tokens, monkeypatch):
    model = tiny(model_type).eval()
    assert losses.chunked(model)
    expected = plainly(monkeypatch, losses.losses_and_hits, model, tokens)
    nll, hits = losses.losses_and_hits(model, tokens)
    torch.testing.assert_close(nll, expected[0])
    assert torch.equal(hits, expected[1])
    torch.testing.assert_close(losses.token_losses(model, tokens), nll)


def gradients(model, tokens, factors, dtype):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        nll = losses.token_losses(model, tokens)
    (nll * factors).sum().backward()
    return nll.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_plain_way(tokens, monkeypatch, dtype, tolerance, tied):
    model = tiny("gpt2", tie_word_embeddings=tied)
    factors = torch.rand(3, 7, generator=torch.Generator().manual_seed(1))
    factors[1] = 0.0  # positions without gradient are skipped
    expected, expected_grads = plainly(monkeypatch, gradients, model.eval(), tokens, factors, dtype)
    nll, grads = gradients(model, tokens, factors, dtype)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)
    for name, grad in grads.items():
        difference = (grad - expected_grads[name]).norm() / expected_grads[name].norm().clamp(min=1e-9)
        assert difference < tolerance, name


def test_a_frozen_output_layer_and_no_gradient_at_all():
    hidden = torch.randn(5, 4, requires_grad=True)
    weight, targets = torch.randn(9, 4), torch.tensor([0, 8, 3, 3, 1])
    nll = cross_entropy.linear_cross_entropy(hidden, weight, targets)
    (nll * torch.zeros(5)).sum().backward()
    assert torch.equal(hidden.grad, torch.zeros(5, 4)) and weight.grad is None
    with torch.inference_mode():
        expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
        torch.testing.assert_close(cross_entropy.linear_cross_entropy(hidden, weight, targets), expected)


def test_a_token_known_by_heart_keeps_its_gradient_in_bfloat16():
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[8.0, 0.0], [0.0, 0.0]])
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy.linear_cross_entropy(hidden, weight, torch.tensor([0])).sum().backward()
    assert hidden.grad[0, 0].item() == pytest.approx(-8 * torch.sigmoid(torch.tensor(-8.0)).item(), rel=0.02)


@pytest.mark.parametrize("first, last", [(1, 8), (3, 5)])
def test_greedy_hits(tokens, monkeypatch, first, last):
    model = tiny("gpt2").eval()
    best = model(tokens.long()).logits.argmax(-1)
    tokens[:, 4] = best[:, 3]  # so that some positions hit
    hits = losses.greedy_hits(model, tokens, first, last)
    assert hits.shape == (3, last - first) and hits[:, 4 - first].all()
    assert torch.equal(hits, plainly(monkeypatch, losses.greedy_hits, model, tokens, first, last))


def test_models_with_scaled_or_capped_logits_and_small_vocabularies_take_the_plain_way():
    assert not losses.chunked(tiny("granite", logits_scaling=4.0))
    assert not losses.chunked(tiny("gemma2", final_logit_softcapping=5.0))
    assert not losses.chunked(tiny("gpt2", vocab_size=VOCABULARY - 1))
