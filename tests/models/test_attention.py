"""Blocks of queries against attention written out."""

import pytest
import torch

from tinymem.models.attention import QUERIES, attention


def plain(query, key, value):
    length, width = query.shape[2:]
    scores = query @ key.transpose(2, 3) / width**0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def outputs_and_gradients(function, length, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length)
    inputs = [torch.randn(2, 3, length, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    mixed = function(*inputs)
    weights = torch.randn(mixed.shape, generator=generator).to(dtype)
    return mixed, *torch.autograd.grad((mixed * weights).sum(), inputs)


@pytest.mark.parametrize("length", [1, QUERIES - 1, QUERIES, QUERIES + 1, 3 * QUERIES])
def test_blocks_change_nothing(length):
    ours = outputs_and_gradients(lambda *inputs: attention(None, *inputs, None)[0], length)
    for one, other in zip(ours, outputs_and_gradients(plain, length), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)


def test_bfloat16_stays_close():
    ours = outputs_and_gradients(lambda *inputs: attention(None, *inputs, None)[0], 3 * QUERIES, torch.bfloat16)
    for one, other in zip(ours, outputs_and_gradients(plain, 3 * QUERIES), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() < 0.02 * other.norm()


def test_autocast_multiplies_in_its_type_and_returns_gradients_in_that_of_the_inputs():
    inputs = [torch.randn(1, 1, QUERIES + 3, 4, requires_grad=True) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(None, *inputs, None)[0]
    assert mixed.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(mixed.float().sum(), inputs))
