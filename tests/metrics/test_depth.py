import copy
import math

import pytest
import torch
from known_rows import PAD, known_in_part, windows
from tiny import new_model

from tinymem.metrics.depth import depths, drops, erased_share
from tinymem.metrics.probe import Probe
from tinymem.models.patching import kept_states, patched


class References:
    """The model before the edit and its twin."""

    def __init__(self, original: Probe, twin: Probe | None):
        self.original, self.twin = lambda batch_size: original, lambda batch_size: twin


def other(model, seed: int):
    """The model with its MLPs' weights moved at random."""
    found = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if ".mlp." in name:
                weight.add_(torch.randn_like(weight) * 0.5)
    return found


def probe_of(model, references=None, batch_size: int = 7) -> Probe:
    return Probe(model, 5, batch_size, pad=PAD, references=references)


@pytest.fixture
def models():
    original, rows = known_in_part(30)
    return original.model, other(original.model, 1), other(original.model, 2), rows


def test_the_score_by_hand():
    twin = torch.tensor([[1.0, 0.04, 2.0], [1.0, 0.0, -3.0], [0.05, 0.01, 0.0]])
    edited = torch.tensor([[0.5, 9.0, 3.0], [-1.0, 5.0, 5.0], [1.0, 1.0, 1.0]])
    found = erased_share(twin, edited).tolist()
    assert found[:2] == pytest.approx([(0.5 + 2) / 3, 0.0])  # more than the twin's counts as much; 0.04 does not count
    assert math.isnan(found[2])  # the twin lacks nothing


def test_the_model_itself_has_depth_0_and_the_twin_1(models):
    original, twin, _, rows = models
    references = References(probe_of(original), probe_of(twin))
    own, full = (depths(probe_of(model, references), rows) for model in (original, twin))
    some = ~own.isnan()
    assert some.sum() > 10 and own[some].abs().max() < 1e-6 and full[some].tolist() == pytest.approx([1.0] * some.sum())
    assert torch.equal(some, ~full.isnan()) and not some[-1]  # the last row is nothing but pads


def test_an_edit_behind_the_last_block_only_hides(models):
    original, twin, _, rows = models
    hidden = copy.deepcopy(original)
    with torch.no_grad():
        hidden.transformer.ln_f.weight.mul_(-1)
    found = depths(probe_of(hidden, References(probe_of(original), probe_of(twin))), rows)
    assert found[~found.isnan()].abs().max() < 1e-6


def test_drops_against_a_loop_over_rows_and_layers(models):
    original, twin, edited, rows = models
    found = drops(probe_of(edited), probe_of(original), rows)
    assert found.shape == (30, len(original.transformer.h))
    for number, (_, prompt, tokens) in enumerate(windows(probe_of(original), rows)[:-1]):
        for layer in range(len(original.transformer.h)):
            whole, mixed = (by_hand(original, edited, prompt, tokens, at) for at in (None, layer))
            assert found[number, layer].item() == pytest.approx((whole - mixed) / len(tokens), abs=1e-5)
    assert found[-1].isnan().all()


def by_hand(original, source, prompt: list[int], tokens: list[int], at: int | None) -> float:
    """The log-probability of tokens with the source's states after block `at`, from the prompt's last token on."""
    ids = torch.tensor([prompt + tokens])
    with torch.no_grad():
        states = [
            model.transformer.wte(ids) + model.transformer.wpe.weight[: ids.shape[1]] for model in (source, original)
        ]
        for layer, blocks in enumerate(zip(source.transformer.h, original.transformer.h)):
            outputs = [block(state) for block, state in zip(blocks, states)]
            states = [output[0] if isinstance(output, tuple) else output for output in outputs]
            if layer == at:
                states[1] = torch.cat([states[1][:, : len(prompt) - 1], states[0][:, len(prompt) - 1 :]], 1)
        logs = original.lm_head(original.transformer.ln_f(states[1]))[0].log_softmax(-1)
    return sum(logs[len(prompt) - 1 + place, token].item() for place, token in enumerate(tokens))


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama"])
def test_batches_and_architectures(kind):
    original = new_model(kind)
    twin, edited = other(original, 1), other(original, 2)
    if kind != "gpt2":
        for model, seed in ((twin, 1), (edited, 2)):
            torch.manual_seed(seed)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn_like(weight) * 0.1)
    _, rows = known_in_part(20)
    found = [
        depths(probe_of(edited, References(probe_of(original, None, size), probe_of(twin, None, size)), size), rows)
        for size in (1, 7, 64)
    ]
    for others in found[1:]:
        assert others.tolist() == pytest.approx(found[0].tolist(), abs=1e-4, nan_ok=True)


def test_there_is_no_score_without_a_twin_or_the_model_before(models):
    original, twin, edited, rows = models
    for references in (None, References(probe_of(original), None), References(None, probe_of(twin))):
        assert depths(probe_of(edited, references), rows).isnan().all()


def test_a_model_patched_with_its_own_states_is_itself_and_no_hook_stays(models):
    original, *_ = models
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        plain = original(tokens).logits
        with kept_states(original) as states:
            original(tokens)
        for layer, state in states.items():
            with patched(original, layer, state, torch.ones(1, 4, dtype=torch.bool)):
                assert torch.equal(original(tokens).logits, plain)
            with patched(original, layer, state + 1.0, torch.tensor([[False, False, False, True]])):
                mixed = original(tokens).logits
            assert torch.equal(mixed[:, :3], plain[:, :3]) and not torch.equal(mixed[:, 3], plain[:, 3])
    assert not any(module._forward_hooks for module in original.modules())
