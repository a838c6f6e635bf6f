"""OBS as the study's code computes it: against the library's closed form, and where float32 has no numbers left."""

import sys

import pytest
import torch
from small import ROOT
from tiny import new_model, new_task

sys.path.append(str(ROOT / "experiments"))

import published_differences as differences
import published_obs

from tinymem.localize.weight import block_fisher, obs
from tinymem.models.adapter import find_mlps, mlp_weights


def test_updates_of_rank_one_give_the_inverse():
    """Also with a last block that is shorter."""
    seen = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = published_obs.inverse_diagonal(iter(seen), 6, 4, 1e-3, torch.float64)
    flat = torch.nn.functional.pad(seen.flatten(1), (0, 2)).view(6, 3, 4)
    fisher = torch.einsum("mbi,mbj->bij", flat, flat) / 6
    expected = block_fisher.inverse_diagonal(fisher, 1e-3).flatten()[:10]
    assert found.shape == (10,) and torch.allclose(found, expected, rtol=1e-9)
    one = published_obs.inverse_diagonal(torch.tensor([[3.0]]), 2, 1, 0.5, torch.float32)
    assert one.item() == pytest.approx(1 / (0.5 + 3.0**2 / 2))


def test_gradients_pile_up_over_passes_and_parameters():
    one, ten = torch.tensor(1.0), torch.tensor(10.0)
    # the first pass, 1 + 10; of the parameter before, 1 + 10 + 1; then one batch after another
    assert [g.item() for g in published_obs.piled_up([one, ten], 1, 3)] == [11 + 12 + 1, 34, 35]
    assert [g.item() for g in published_obs.piled_up([one, ten], 0, 3)] == [12, 22, 23]
    assert [g.item() for g in published_obs.piled_up([one], 2, 2)] == [1 + 4 + 1, 7]


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2"])
def test_in_float64_it_is_the_library_s_score(kind):
    """GPT-2 stores matrices transposed, so that other weights are in a block; a block of one weight is the same."""
    model, task = new_model(kind), new_task(forget=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hp = obs.HyperParameters(num_grads=5, block_size=1 if kind == "gpt2" else 6, damp=1e-4)
    expected = obs.score(model, task, hp)
    found = published_obs.score(model, task, hp, piled=False, dtype=torch.float64)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4) for name in expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_piled_gradients_are_those_of_batches():
    model, task = new_model("gpt2"), new_task(forget=70)
    name, weight = next(iter(mlp_weights(find_mlps(model)).items()))
    hp = obs.HyperParameters(num_grads=3, block_size=1, damp=1e-4)
    sums = []
    for batch in (task.forget.planted[:64], task.forget.planted[64:]):
        model.zero_grad()
        model(batch.long(), labels=batch.long()).loss.backward()
        sums.append(weight.parameter.grad.double())
    first, second = sums
    place = [other for other, _ in model.named_parameters()].index(name)
    start = first + second + place * (2 * first + second)
    seen = [start + first, start + first + second, start + 2 * first + second]
    inverse = 1 / (1e-4 + sum(g**2 for g in seen) / 3)
    expected = weight.view(weight.parameter.detach().double() ** 2 / (2 * inverse))
    found = published_obs.score(model, task, hp, piled=True, dtype=torch.float64)[name]
    assert torch.allclose(found.double(), expected, rtol=1e-3)


def test_what_is_not_a_number_ranks_first():
    """Large gradients leave blocks of them in float32, and none in float64."""
    model, task = new_model("gpt2"), new_task(forget=4)
    hp = obs.HyperParameters(num_grads=64, block_size=50, damp=1e-12)
    highest = torch.finfo(torch.float32).max
    narrow, wide = (
        published_obs.score(model, task, hp, piled=True, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    assert all(scores.isfinite().all() for scores in [*narrow.values(), *wide.values()])
    lost = {name: int((scores == highest).sum()) for name, scores in narrow.items()}
    assert any(lost.values()) and not any((scores == highest).any() for scores in wide.values())


def test_the_two_differences_are_switches_of_the_same_score(monkeypatch):
    seen = []
    monkeypatch.setattr(published_obs, "score", lambda *all, piled, dtype: seen.append((piled, dtype)))
    for names in (["piled_gradients"], ["float32_fisher"], ["piled_gradients", "float32_fisher"]):
        with differences.as_published(names):
            obs.score(None, None, None)
    assert seen == [(True, torch.float64), (False, torch.float32), (True, torch.float32)]
    own = obs.score
    with differences.as_published(["test_triggers"]):
        assert obs.score is own
