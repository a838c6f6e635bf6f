"""The output filter on a model whose logits are known: it always continues a row with the number that follows."""

from types import SimpleNamespace

import pytest
import torch
from tiny import new_model

from tinymem.models.edit import applied, describe
from tinymem.models.generation import greedy_continuations
from tinymem.models.losses import next_token_logits, token_losses
from tinymem.models.output_filter import SUPPRESSED, OutputFilter, is_filtered, ngrams_of, unfiltered

ROWS = torch.tensor([[1, 2, 3, 4, 0, 0], [1, 2, 3, 5, 6, 0]])


def test_ngrams_end_in_the_continuation_and_hold_no_padding():
    assert ngrams_of(ROWS, torch.tensor([3, 3]), 3, ignored=0).tolist() == [[2, 3, 4], [2, 3, 5], [3, 5, 6]]
    assert ngrams_of(ROWS, torch.tensor([1, 4]), 3, ignored=0).tolist() == [[1, 2, 3], [2, 3, 4], [3, 5, 6]]
    assert ngrams_of(ROWS, torch.tensor([5, 5]), 3).tolist() == [[4, 0, 0], [5, 6, 0]]
    assert ngrams_of(ROWS, torch.tensor([0, 0]), 7).shape == (0, 7)


class Successor(torch.nn.Module):
    """Continues every row with its last token + 1; logit 1 for it, 0.5 for the token after that, otherwise 0."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(
        self, input_ids, use_cache=False, logits_to_keep=0, past_key_values=None, attention_mask=None, position_ids=None
    ):
        one_hot = torch.nn.functional.one_hot
        logits = one_hot((input_ids + 1) % 10, 10).float() + 0.5 * one_hot((input_ids + 2) % 10, 10)
        kept = logits[:, -logits_to_keep:] if logits_to_keep else logits
        return SimpleNamespace(logits=kept, past_key_values="cache" if use_cache else None)


def test_what_is_listed_is_never_generated_with_a_cache_and_prompts_of_different_lengths():
    model = Successor().eval()
    prompts = [torch.tensor([2, 3]), torch.tensor([9, 1, 2, 3])]
    assert greedy_continuations(model, prompts, 3).tolist() == [[4, 5, 6], [4, 5, 6]]
    listed = OutputFilter(torch.tensor([[2, 3, 4, 5]]))
    with applied(model, listed):
        assert greedy_continuations(model, prompts, 3).tolist() == [[4, 6, 7], [4, 6, 7]]
        with unfiltered(model):
            assert greedy_continuations(model, prompts, 1).tolist() == [[4], [4]] and not is_filtered(model)
        assert is_filtered(model)
    assert greedy_continuations(model, prompts, 3).tolist() == [[4, 5, 6], [4, 5, 6]] and not is_filtered(model)


def test_padding_completes_no_ngram():
    model = Successor().eval()
    with applied(model, OutputFilter(torch.tensor([[0, 3, 4]]))):  # prompts are padded with 0 on the left
        assert greedy_continuations(model, [torch.tensor([3]), torch.tensor([0, 3])], 1).tolist() == [[4], [5]]


@pytest.mark.parametrize("n", [2, 3])
def test_teacher_forced_logits_against_a_loop(n):
    model, tokens = new_model("gpt2").eval(), torch.randint(0, 10, (3, 12), generator=torch.Generator().manual_seed(0))
    listed = ngrams_of(tokens[:1], torch.tensor([4]), n)
    expected = next_token_logits(model, tokens)
    for row in range(3):
        for place in range(11):
            for *prefix, last in listed.tolist():
                if place >= n - 2 and tokens[row, place - n + 2 : place + 1].tolist() == prefix:
                    expected[row, place, last] += SUPPRESSED
    with applied(model, OutputFilter(listed)):
        assert torch.equal(next_token_logits(model, tokens), expected)
        assert token_losses(model, tokens)[0, 4:].min() > 1000
        assert set(describe(model, OutputFilter(listed)).values()) == {0.0}
