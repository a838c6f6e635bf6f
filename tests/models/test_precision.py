"""What "auto" chooses, and what autocast does to a forward pass."""

import pytest
import torch

from tinymem.models.precision import PRECISIONS, auto_precision, autocast
from tinymem.models.tinymem import ModelSettings, new_model


@pytest.mark.parametrize(
    "capabilities, precision",
    [
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_f": True}, "float32"),
    ],
)
def test_auto_is_what_the_processor_has_instructions_for(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert auto_precision.__wrapped__(torch.device("cpu")) == precision


@pytest.mark.parametrize("native", [True, False])
def test_emulation_on_a_gpu_does_not_count(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert auto_precision.__wrapped__(torch.device("cuda", 0)) == ("bfloat16" if native else "float32")


def test_other_devices_stay_in_float32():
    assert auto_precision(torch.device("mps")) == "float32"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_autocast_multiplies_in_the_precision_asked_for(precision, weights):
    model = new_model(ModelSettings(n_layers=1, n_heads=1, n_embd=8), 14, 20, seed=0).to(weights)
    with autocast(model, precision):
        product = torch.ones(2, 2, dtype=weights) @ torch.ones(2, 2, dtype=weights)
    asked_for = auto_precision(model.device) if precision == "auto" else precision
    assert product.dtype == (
        torch.bfloat16 if torch.bfloat16 in (weights, getattr(torch, asked_for)) else torch.float32
    )
