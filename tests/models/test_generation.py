"""Greedy generation with a cache against the plain loop: the same tokens, for any architecture and mixed lengths."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tinymem.errors import UserError
from tinymem.models.generation import NOTHING, greedy_continuations
from tinymem.models.tinymem import ModelSettings, new_model

CONTEXT, VOCABULARY = 24, 23
LENGTHS = (5, 1, 9, 5, 12, 3, 9)


def tiny(model_type: str):
    if model_type == "tinymem":
        return new_model(ModelSettings(n_layers=2, n_heads=2, n_embd=16), VOCABULARY, CONTEXT, seed=0).eval()
    sizes = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(intermediate_size=32, num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.6)
    if model_type == "gpt_neo":
        sizes |= dict(attention_types=[[["global", "local"], 1]], window_size=4)
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **ids)).eval()


def prompts(lengths=LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator, dtype=torch.int16) for length in lengths]


def plain_loop(model, prompt: torch.Tensor, count: int, eos: int | None = None) -> list[int]:
    tokens = prompt.long().tolist()
    for _ in range(count):
        if len(tokens) == CONTEXT or (eos is not None and eos in tokens[len(prompt) :]):
            break
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    made = tokens[len(prompt) :]
    return made + [NOTHING] * (count - len(made))


# bloom counts positions by itself; gpt_neo's own mask is as large as its context
MODELS = ["tinymem", "gpt2", "gpt_neox", "llama", "mistral", "bloom", "gpt_neo"]


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_equals_the_loop_without_cache_and_stops_at_the_context(model_type, batch_size):
    model, count = tiny(model_type), 16
    rows = prompts()
    generated = greedy_continuations(model, rows, count, batch_size)
    expected = [plain_loop(model, row, count) for row in rows]
    assert generated.tolist() == expected
    assert (generated[4] == NOTHING).sum() == 12 + 16 - CONTEXT
    assert len({token for row in expected for token in row}) > 5  # or else the equality would say little


@pytest.mark.parametrize("model_type", ["tinymem", "llama"])
def test_bfloat16_makes_a_token_that_is_best_up_to_rounding(model_type):
    """A flip at a tie changes all tokens behind it, so each is judged after the tokens that were made before it."""
    model = tiny(model_type).bfloat16()
    for row, made in zip(prompts(), greedy_continuations(model, prompts(), 8)):
        with torch.no_grad():
            logits = model(torch.cat([row.long(), made])[None], use_cache=False).logits[0, len(row) - 1 : -1].float()
        best = logits.gather(1, made[:, None]).squeeze(1)
        assert (logits.amax(1) - best <= 0.05 * logits.abs().amax(1)).all()


def test_an_end_token_stops_a_row_only_where_it_is_asked_for():
    model, rows = tiny("llama"), prompts()
    free = greedy_continuations(model, rows, 8)
    eos = int(free[0, 2])
    expected = [plain_loop(model, row, 8, eos) for row in rows]
    assert greedy_continuations(model, rows, 8, eos=eos).tolist() == expected
    assert NOTHING in expected[0] and (free[0] != NOTHING).all()


def test_the_cache_spares_work():
    model, widths = tiny("llama"), []
    model.register_forward_pre_hook(lambda module, args: widths.append(tuple(args[0].shape)))
    greedy_continuations(model, prompts((4, 6)), 5)
    assert widths == [(2, 6)] + [(2, 1)] * 4


def test_lengths_share_a_batch_unless_its_rows_would_outgrow_the_context():
    model, batches = tiny("llama"), []
    model.register_forward_pre_hook(lambda module, args: batches.append(tuple(args[0].shape)))
    greedy_continuations(model, prompts((4, 21, 19, 6, 20, 21)), CONTEXT - 19)
    assert [shape for shape in batches if shape[1] > 1] == [(3, 19), (1, 20), (2, 21)]


def test_nothing_to_do_and_bad_prompts():
    model = tiny("gpt2")
    assert greedy_continuations(model, [], 5).shape == (0, 5)
    assert greedy_continuations(model, prompts((CONTEXT,)), 2).tolist() == [[NOTHING] * 2]
    with pytest.raises(UserError, match="at least one"):
        greedy_continuations(model, prompts((3, 0)), 5)
    with pytest.raises(UserError, match=f"takes at most {CONTEXT}"):
        greedy_continuations(model, prompts((CONTEXT + 1,)), 5)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        greedy_continuations(model, prompts((3,)), 1)
