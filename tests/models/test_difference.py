"""One model as an edit of another: the same outputs, and a clear line for what is another model."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tinymem.data.tokenizer import train_tokenizer
from tinymem.errors import UserError
from tinymem.models.channel_gate import mark, restore_gate
from tinymem.models.difference import check_same, check_same_tokens, edit_between
from tinymem.models.edit import applied

TOKENS = torch.arange(12)[None] % 14


def gpt2(**changes):
    torch.manual_seed(0)
    config = dict(vocab_size=14, n_positions=12, n_embd=8, n_layer=2, n_head=2, initializer_range=0.2) | changes
    return GPT2LMHeadModel(GPT2Config(**config)).eval()


def changed(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.transformer.h[1].mlp.c_proj.weight.add_(0.5)
    return other


@pytest.mark.parametrize("gated", [False, True])
def test_the_edited_model_says_what_the_other_says(gated):
    original = gpt2()
    other = changed(original)
    if gated:  # as example-tied dropout leaves it: what it computes is not in its weights alone
        mark(other, 0.5, 0.25)
        restore_gate(other)
    before, wanted = original(TOKENS).logits, other(TOKENS).logits
    edit = edit_between(original, other, "other")
    with applied(original, edit):
        assert original(TOKENS).logits.equal(wanted)
    assert original(TOKENS).logits.equal(before) and not before.equal(wanted)
    assert edit.extent(original).changed == 32 * 8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_embd": 16}, "and [0-9]+ more differ in shape"),
        ({"n_positions": 64}, "transformer.wpe.weight differs in shape"),
        ({"n_head": 4}, "config.json says n_head 4, not 2"),
        ({"activation_function": "relu"}, "config.json says activation_function relu, not gelu_new"),
        ({"resid_pdrop": 0.9, "use_cache": False, "eos_token_id": 3}, None),
    ],
)
def test_another_model_is_refused(changes, message):
    if message is None:
        check_same(gpt2(), gpt2(**changes), "other")
    else:
        with pytest.raises(UserError, match=f"other: not an edit of this model; .*{message}"):
            check_same(gpt2(), gpt2(**changes), "other")


def test_a_gated_model_has_no_edit_without_its_gate():
    original = gpt2()
    mark(original, 0.5, 0.25)
    with pytest.raises(UserError, match="trained with example-tied dropout"):
        check_same(original, gpt2(), "other")
    other = gpt2()
    mark(other, 0.2, 0.1)
    with pytest.raises(UserError, match="trained with example-tied dropout"):
        check_same(original, other, "other")


def test_another_tokenizer_is_refused():
    one = train_tokenizer(["a river runs to the town"] * 3, 300)
    check_same_tokens(one, copy.deepcopy(one), "other")
    check_same_tokens(one, None, "other")
    with pytest.raises(UserError, match="other: has another tokenizer"):
        check_same_tokens(one, train_tokenizer(["money for the army of the south"] * 3, 300), "other")
