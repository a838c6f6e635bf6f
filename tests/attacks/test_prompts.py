"""Attacks on prompts, against greedy decoding of one prompt at a time."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tinymem.attacks import (
    context_shift,
    logit_lens,
    prefix_shift,
    prefix_shorten,
    sampling,
    similar_tokens,
    weight_noise,
)
from tinymem.attacks.prompts import cut
from tinymem.data.dataset import Artifacts
from tinymem.metrics.probe import Probe
from tinymem.models.edit import apply
from tinymem.models.generation import greedy_continuations
from tinymem.models.losses import next_token_logits

NAME = "percent_memorized"


@pytest.fixture
def mixed(planted) -> Artifacts:
    """Artifacts whose prompts have different lengths; the last rows end inside their continuation."""
    artifacts = planted.dataset.artifacts
    ends = torch.tensor([3, 5, 6, 4] * 3 + [7, 8, 9, 10])
    return replace(
        artifacts, prompt_end=ends, clean=torch.where(torch.arange(12) < ends[:, None], artifacts.planted, 0)
    )


@pytest.fixture(params=[True, False], ids=["bos kept", "bos cut"])
def keep_bos(request) -> bool:
    return request.param


@pytest.fixture
def begun(mixed) -> Artifacts:
    """The same, every other row with <bos> (token 0) in front; the rest begin with another token."""
    first = torch.tensor([0, 5] * 8)
    return replace(mixed, **{n: torch.cat([first[:, None], getattr(mixed, n)[:, 1:]], 1) for n in ("clean", "planted")})


@pytest.fixture(scope="module")
def weak(planted):
    """The model with noise in its weights: some sequences come out, others do not."""
    model = copy.deepcopy(planted.model)
    apply(model, weight_noise.attack(model, SimpleNamespace(seed=0), weight_noise.HyperParameters(), 0.45).edits[0])
    return model


@pytest.fixture
def probe(planted, weak) -> Probe:
    return Probe(weak, planted.dataset.continuation, batch_size=5)


def comes_out(model, prompt: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether greedy decoding, one prompt alone and thus without padding, gives these tokens."""
    tokens = prompt.long()[None]
    for _ in wanted:
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    return tokens[0, len(prompt) :].tolist() == wanted.tolist()


def rows_of(artifacts, k):
    """Prompt and continuation of every row."""
    for clean, planted, end in zip(artifacts.clean, artifacts.planted, artifacts.prompt_end.tolist()):
        yield clean[:end], planted[end : end + k]


def without(prompt: torch.Tensor, count: int, keep_bos: bool) -> torch.Tensor:
    """A prompt without its first tokens, or without those behind its <bos>."""
    front = prompt[:1] if keep_bos and prompt[0] == 0 else prompt[:0]
    return torch.cat([front, prompt[len(front) + count :]])


def test_shortened_prompts(weak, probe, begun, subject, keep_bos):
    hp = prefix_shorten.HyperParameters(keep_bos=keep_bos)
    found = prefix_shorten.elicit(weak, subject.task, hp, 3).values[NAME]
    expected = [
        any(comes_out(weak, without(prompt, count, keep_bos), rest) for count in range(min(3, len(prompt) - 1) + 1))
        for prompt, rest in rows_of(begun, 6)
    ]
    assert found(probe, begun).tolist() == expected and 0 < sum(expected) < len(expected)


def test_shifted_prompts(weak, probe, begun, subject, keep_bos):
    hp = prefix_shift.HyperParameters(keep_bos=keep_bos)
    found = prefix_shift.elicit(weak, subject.task, hp, 4).values[NAME]
    for rows in (begun, replace(begun, planted=(begun.planted + 1) % 12)):
        expected = [
            any(
                len(rest) > shift
                and comes_out(weak, without(torch.cat([prompt, rest[:shift]]), shift, keep_bos), rest[shift:])
                for shift in range(5)
            )
            for prompt, rest in rows_of(rows, 6)
        ]
        assert found(probe, rows).tolist() == expected


def test_contexts(weak, probe, mixed, subject):
    hp = context_shift.HyperParameters(context_tokens=4)
    found = context_shift.elicit(weak, subject.task, hp, 2).values[NAME]
    texts = [subject.task.retain[0][:2], subject.task.retain[-1][:4]]
    expected = []
    for prompt, rest in rows_of(mixed, 6):
        fitting = [text for text in texts if len(text) + min(len(prompt) + 6, 12) <= 18]  # the model's context
        tries = [prompt, *(torch.cat([text, prompt]) for text in fitting)]
        expected.append(any(comes_out(weak, tried, rest) for tried in tries))
    assert found(probe, mixed).tolist() == expected
    crowded = replace(subject.task, retain=torch.zeros(1, 12, dtype=torch.long))
    hp = context_shift.HyperParameters(context_tokens=12)  # no room: rows stay as they are
    alone = [comes_out(weak, *row) for row in rows_of(mixed, 6)]
    assert context_shift.elicit(weak, crowded, hp, 1).values[NAME](probe, mixed).tolist() == alone


def test_prompts_of_mixed_lengths_are_decoded_as_alone(weak, mixed):
    prompts = [prompt for prompt, _ in rows_of(mixed, 6)]
    together = greedy_continuations(weak, prompts, 3, batch_size=16)
    for prompt, found in zip(prompts, together):
        assert comes_out(weak, prompt, found)


def test_similar_tokens_replace_what_they_say(weak, probe, mixed, subject):
    embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    assert similar_tokens.closest(embeddings, torch.tensor([0, 1, 2, 3, 0])).tolist() == [1, 0, 1, 2, 1]
    generator = torch.Generator().manual_seed(0)
    kept = torch.tensor([True, False] * 8)
    changed = similar_tokens._varied(weak, mixed, 4, generator, kept) != mixed.clean
    inside = torch.arange(12) < mixed.prompt_end[:, None]
    assert not (changed & ~inside).any() and not changed[kept, 0].any()
    assert changed.sum(1).tolist() == [
        min(4, end - first) for end, first in zip(mixed.prompt_end.tolist(), kept.tolist())
    ]
    found = similar_tokens.elicit(weak, subject.task, similar_tokens.HyperParameters(), 1).values[NAME]
    plain = [comes_out(weak, *row) for row in rows_of(mixed, 6)]
    assert all(now >= before for now, before in zip(found(probe, mixed).tolist(), plain))
    assert found(probe, mixed).equal(found(probe, mixed))


def test_sampling_counts_the_odds(planted, weak, probe, subject):
    rows = planted.dataset.artifacts
    hp = sampling.HyperParameters(p=0.9)
    logits = next_token_logits(weak, torch.where(torch.arange(12) < 5, rows.clean, rows.planted)).double()
    logs = logits.log_softmax(-1).gather(2, rows.planted[:, 1:, None].long())[:, 4:10, 0].sum(1)
    for n in (1, 3, 1000):
        odds = [1 - (1 - math.exp(log)) ** n for log in logs.tolist()]
        found = sampling.elicit(weak, subject.task, hp, n).values[NAME](probe, rows)
        assert found.sums.tolist() == [float(chance >= 0.9) for chance in odds]


def test_logit_lens_reads_a_block_with_the_last_norm(weak, probe, mixed, subject):
    hp = logit_lens.HyperParameters()
    last = logit_lens.elicit(weak, subject.task, hp, 1.0).values
    plain = [comes_out(weak, *row) for row in rows_of(mixed, 6)]
    assert last[NAME](probe, mixed).tolist() == plain  # behind the last block is the model itself
    first = logit_lens.elicit(weak, subject.task, hp, 0.5).values
    row, (prompt, rest) = mixed.select(torch.tensor([0])), next(rows_of(mixed, 6))
    tokens = torch.cat([prompt, rest])[None].long()
    states = weak(tokens, output_hidden_states=True).hidden_states[1]
    read = weak.lm_head(weak.transformer.ln_f(states)).argmax(-1)[0, len(prompt) - 1 : -1]
    values = first["exact_match_share"](probe, row)
    assert values.sums.item() == pytest.approx((read == rest).double().mean().item())
    assert first[NAME](probe, row).item() == float((read == rest).all())


def test_logit_lens_at_a_depth_of_whole_blocks_reads_behind_all_of_them(mixed):
    """0.58 of 50 blocks are 29, but 0.58 * 50 is 28.999... Behind each block stands its number."""
    config = GPT2Config(vocab_size=12, n_positions=18, n_embd=4, n_layer=50, n_head=1, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    seen = []
    model.transformer.ln_f.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for number, block in enumerate(model.transformer.h, 1):
        block.register_forward_hook(lambda module, inputs, output, number=number: torch.full_like(output, number))
    lens = logit_lens.elicit(model, None, logit_lens.HyperParameters(), 0.58).values
    assert len(lens[NAME](Probe(model, 6, batch_size=8), mixed)) == len(mixed)
    assert {float(state.unique()) for state in seen} == {29.0, 50.0}  # read by the lens, and by the model itself


def test_logit_lens_reads_no_pads(planted, subject):
    """An output layer of zeros reads token 0: of 3 tokens and 3 pads two are right, of pads alone nothing counts."""
    model = copy.deepcopy(planted.model)
    torch.nn.init.zeros_(model.lm_head.weight)
    rows = torch.tensor([[1, 2, 0, 5, 0, 9, 9, 9], [1, 2, 9, 9, 9, 9, 9, 9], [1, 2, 3, 4, 5, 6, 0, 0]])
    artifacts = Artifacts(rows, rows, torch.tensor([2, 2, 2]), torch.zeros(3, dtype=torch.long))
    lens = logit_lens.elicit(model, subject.task, logit_lens.HyperParameters(), 0.5).values["exact_match_share"]
    for pad, shares, counted in (
        (9, [2 / 3, 0, 1 / 3], [1, 0, 1]),
        (0, [0, 0, 0], [1, 1, 1]),  # what is right is a pad
        (None, [1 / 3, 0, 1 / 3], [1, 1, 1]),
    ):
        found = lens(Probe(model, 6, batch_size=2, pad=pad), replace(artifacts))
        assert found.sums.tolist() == pytest.approx(shares) and found.weights.tolist() == counted


def test_cut_keeps_positions_and_width():
    rows = torch.arange(10, 22).view(2, 6)
    artifacts = Artifacts(rows, rows + 100, torch.tensor([3, 4]), torch.zeros(2, dtype=torch.long))
    found = cut(artifacts, torch.tensor([1, 2]))
    assert found.planted.tolist() == [[11, 12, 13, 14, 15, 15], [18, 19, 20, 21, 21, 21]]
    assert found.prompt_end.tolist() == [2, 2] and found.clean.tolist()[0][0] == 111
