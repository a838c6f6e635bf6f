"""Every method on a model that accelerate has spread over two devices: the same masks as on one.

The devices are fake (tests/fake_devices.py), but as strict as real ones: no tensor meets one of another device.
"""

import copy

import pytest
import torch
from fake_devices import FIRST, SECOND, fake_devices
from methods import masks_of, quick

from tinymem.localize.registry import METHODS, STUDY
from tinymem.metrics.memorization import memorized
from tinymem.metrics.quality import quality
from tinymem.models import losses
from tinymem.models.edit import Zeros, applied, describe

BLOCKS = {"gpt2": ("transformer", "h"), "gpt_neox": ("gpt_neox", "layers"), "llama": ("model", "layers")}


def spread(model):
    """The model with block 0 on the first and block 1 on the second device, as `device_map="auto"` might place it."""
    from accelerate import dispatch_model

    base, blocks = BLOCKS[model.config.model_type]
    places = {f"{base}.{name}": FIRST for name, _ in getattr(model, base).named_children() if name != blocks}
    places |= {name: SECOND for name in places if name.endswith(("norm", "ln_f"))}
    places |= {f"{base}.{blocks}.0": FIRST, f"{base}.{blocks}.1": SECOND}
    places["lm_head"] = FIRST if model.config.tie_word_embeddings else SECOND
    return dispatch_model(model, {name: str(place) for name, place in places.items()})


@pytest.fixture
def pair(tiny_model):
    """pair(architecture): a model on one device and the same model on two; within fake_devices() only."""

    def make(architecture="gpt_neox"):
        model = tiny_model(architecture)
        model.set_attn_implementation("eager")  # the fused kernels make tensors of their own
        model.config.pad_token_id = None  # or else GPT-2 looks for pads in a way that the fake devices cannot follow
        return copy.deepcopy(model), spread(model)

    return make


def on_cpu(tensors):
    return {name: tensor.cpu() for name, tensor in tensors.items()}


@pytest.mark.parametrize("architecture", BLOCKS)
@pytest.mark.parametrize("chunked", [True, False])
def test_losses_and_gradients(pair, tiny_task, architecture, chunked, monkeypatch):
    monkeypatch.setattr(losses, "LARGE_VOCABULARY", 1 if chunked else 10**9)
    tokens = tiny_task().forget.planted
    with fake_devices():
        whole, split = pair(architecture)
        assert {parameter.device for parameter in split.parameters()} == {FIRST, SECOND}
        assert losses.chunked(split) == chunked
        for model in (whole, split):
            losses.token_losses(model, tokens).sum().backward()
        for ours, theirs in zip(split.parameters(), whole.parameters()):
            assert ours.grad.device == ours.device
            torch.testing.assert_close(ours.grad.cpu(), theirs.grad)
        results = [
            (*losses.losses_and_hits(model, tokens), losses.greedy_hits(model, tokens, 4, 9))
            for model in (whole, split)
        ]
        for expected, found in zip(*results):
            assert found.device == split.device and torch.equal(found.cpu(), expected)


# GPT-2's output layer is its embedding, on the first device, which Zero-Out's closed forms have to reach too.
@pytest.mark.parametrize("architecture, name", [*(("gpt_neox", name) for name in STUDY), ("gpt2", "zero_out")])
def test_every_method(pair, tiny_task, architecture, name):
    method = METHODS[name]
    task = tiny_task(4, 6, microbatch=3)
    with fake_devices():
        whole, split = pair(architecture)
        expected, found = (masks_of(method, model, task, quick(method)) for model in (whole, split))
        assert any(mask.any() for mask in on_cpu(expected).values())
        assert all(torch.equal(found[key].cpu(), mask) for key, mask in expected.items())


def test_editing_and_measuring(pair, tiny_task):
    task, method = tiny_task(), METHODS["durable"]
    with fake_devices():
        whole, split = pair()
        masks = masks_of(method, split, task, method.hyper_parameters(ratio=(0.2,)))
        before = quality(split, task.retain, pad=13, pad_counts=True).mean_loss
        extents = describe(whole, Zeros(on_cpu(masks))), describe(split, Zeros(masks))
        assert extents[0] == pytest.approx(extents[1]) and extents[0]["percent_zeroed"] > 0
        with applied(whole, Zeros(on_cpu(masks))), applied(split, Zeros(masks)):
            measured = [quality(model, task.retain, pad=13, pad_counts=True).mean_loss for model in (whole, split)]
            assert measured[0] == pytest.approx(measured[1]) and measured[1] != before
            flags = [memorized(model, task.forget, task.continuation) for model in (whole, split)]
            assert torch.equal(*flags)
        assert quality(split, task.retain, pad=13, pad_counts=True).mean_loss == before
