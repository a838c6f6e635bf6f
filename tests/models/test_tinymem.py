import math

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from tinymem.errors import UserError
from tinymem.models.tinymem import ModelSettings, load_model, new_model


def model(layers=2, seed=0):
    settings = ModelSettings(n_layers=layers, n_embd=32, n_heads=4)
    return new_model(settings, 14, 20, seed, bos_token_id=10, eos_token_id=11, pad_token_id=13).eval()


TOKENS = torch.randint(0, 14, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layers", [1, 2, 4, 8, 16])
def test_the_initial_weights(layers):
    weights = dict(model(layers).named_parameters())
    std = 0.8 / math.sqrt(32)
    assert len([name for name in weights if name.endswith("mlp.c_fc.weight")]) == layers
    for name, weight in weights.items():
        if "ln_" in name:
            assert weight.eq(1.0 if name.endswith("weight") else 0.0).all()
        elif name.endswith("bias"):
            assert weight.eq(0).all()
        else:
            expected = std / math.sqrt(2 * layers) if "c_proj" in name else std
            assert abs(weight.std().item() / expected - 1) < 0.15 and abs(weight.mean().item()) < 0.3 * expected


def test_the_seed_decides_the_weights():
    a, b, c = model(), model(), model(seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.transformer.wte.weight, c.transformer.wte.weight)


@pytest.mark.parametrize("stock", ["eager", "sdpa"])
def test_same_logits_and_gradients_as_the_stock_model(stock, tmp_path):
    ours = model()
    ours.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=stock)
    assert type(theirs) is GPT2LMHeadModel
    for m in (ours, theirs):
        m(TOKENS, labels=TOKENS).loss.backward()
    torch.testing.assert_close(ours(TOKENS).logits, theirs(TOKENS).logits, atol=2e-6, rtol=1e-5)
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(mine.grad, other.grad, atol=2e-6, rtol=1e-4)


def test_padding_masks_and_caches_work_as_in_the_stock_model(tmp_path):
    ours = model()
    ours.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    mask = torch.ones_like(TOKENS)
    mask[0, :5] = 0
    mask[1, :2] = 0
    kept = mask.bool()
    a, b = (m(TOKENS, attention_mask=mask).logits[kept] for m in (ours, theirs))
    torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)
    prompt = dict(input_ids=TOKENS[:, :7], attention_mask=mask[:, :7], max_new_tokens=10, do_sample=False)
    assert torch.equal(ours.generate(**prompt), theirs.generate(**prompt))


def test_bfloat16_autocast_stays_close():
    ours = model()
    with torch.autocast("cpu", torch.bfloat16):
        low = ours(TOKENS).logits.float()
    torch.testing.assert_close(low, ours(TOKENS).logits, atol=0.05, rtol=0.05)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        load_model(tmp_path)
    model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="--n_embd 30"):
        ModelSettings(n_embd=30, n_heads=4)
