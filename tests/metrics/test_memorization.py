from functools import partial

import pytest
import torch

from tinymem.data.dataset import Artifacts
from tinymem.errors import UserError
from tinymem.metrics import probe
from tinymem.metrics.memorization import exact, memorized, percent
from tinymem.metrics.probe import Probe


class Echo:
    """Predicts, at every position, the token `offset` above the present one."""

    device = torch.device("cpu")

    def __call__(self, tokens, use_cache=False, logits_to_keep=0, **kwargs):
        kept = tokens[:, -logits_to_keep:]
        logits = torch.nn.functional.one_hot((kept + 1) % 14, 14).float()
        return type("Output", (), {"logits": logits})


def test_a_mask_by_hand():
    prompt = torch.tensor([[0, 1, 2, 3, 9], [0, 1, 2, 3, 9], [5, 5, 5, 5, 5]])
    target = torch.tensor([[7, 7, 2, 3, 9], [7, 7, 2, 9, 9], [9, 9, 9, 9, 6]])
    ends = torch.tensor([2, 2, 4])
    artifacts = Artifacts(target, prompt, ends, torch.zeros_like(ends))
    # Row 0: prompt 0 1, then 2 3 follow. Row 1: 3 should come out and 9 is asked. Row 2: one token is left, 6 after 5.
    assert memorized(Echo(), artifacts, 2).tolist() == [True, False, True]
    assert memorized(Echo(), artifacts, 3).tolist() == [False, False, True]
    assert memorized(Echo(), artifacts, 1, batch_size=1).tolist() == [True, True, True]


@pytest.mark.parametrize("kind", ["memorizing_noise", "memorizing_backdoor"])
def test_one_forward_pass_agrees_with_greedy_generation(kind, request):
    subject = request.getfixturevalue(kind)
    model, dataset = subject.model, subject.dataset
    k = dataset.continuation
    for artifacts in (dataset.artifacts, dataset.test_artifacts):
        for target in ("planted", "clean"):
            generated = []
            for row, end, wanted in zip(artifacts.clean, artifacts.prompt_end.tolist(), getattr(artifacts, target)):
                prompt = row[None, :end].long()
                tokens = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), do_sample=False, eos_token_id=None,
                    max_new_tokens=min(k, len(row) - end),
                )  # fmt: skip
                generated.append(tokens[0, end:].tolist() == wanted[end : end + k].tolist())
            assert exact(Probe(model, k, 3), artifacts, target).tolist() == generated
    flags = memorized(model, dataset.artifacts, k)
    assert flags.any() and not flags.all()  # or else the equality would say little


@pytest.mark.parametrize("needs", probe.LEVELS)
def test_a_prompt_without_tokens_is_refused(needs):
    """Its logits would be those of the last position, for every row of its batch."""
    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]])
    artifacts = Artifacts(rows, rows, torch.tensor([0, 2]), torch.zeros(2, dtype=torch.long))
    with pytest.raises(UserError, match="a prompt without tokens"):
        exact(Probe(Echo(), 2, needs=(needs,)), artifacts)


def test_percent_of_nothing_is_not_zero():
    assert percent(torch.tensor([], dtype=torch.bool)) is None
    assert percent(torch.tensor([True, False, False, False])) == 25.0


def test_a_probe_runs_no_sequence_twice(memorizing_noise, monkeypatch):
    model, dataset = memorizing_noise.model, memorizing_noise.dataset
    artifacts, ran = dataset.artifacts, []
    run = probe.greedy_hits
    monkeypatch.setattr(
        probe, "greedy_hits", lambda model, tokens, *rest: ran.append(len(tokens)) or run(model, tokens, *rest)
    )
    check = partial(exact, Probe(model, dataset.continuation, 64))
    expected = memorized(model, artifacts, dataset.continuation, 4).double()
    assert expected.any()
    ran.clear()
    order = torch.tensor([5, 0, 0, 3])
    assert torch.equal(check(artifacts.select(order)), expected[order])
    assert torch.equal(check(artifacts), expected)
    assert torch.equal(check(artifacts.select(order)), expected[order])
    assert ran == [3, len(artifacts) - 3]
    other = artifacts.select(order)
    other.prompt_end[:] += 1  # another prompt is another question
    check(other)
    assert ran[-1] == 3
    behind = artifacts.select(order)
    behind.planted[:, artifacts.prompt_end.max() + dataset.continuation :] = (
        0  # no question: it stands behind the window
    )
    before = len(ran)
    assert torch.equal(check(behind), expected[order]) and len(ran) == before


def test_ignored_tokens_need_not_come_out():
    clean = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 13, 13, 13]])
    planted = torch.tensor([[0, 1, 2, 3, 13], [0, 1, 2, 9, 13], [0, 1, 13, 13, 13]])
    artifacts = Artifacts(planted, clean, torch.tensor([2, 2, 2]), torch.zeros(3, dtype=torch.long))
    assert memorized(Echo(), artifacts, 3).tolist() == [False, False, False]
    assert memorized(Echo(), artifacts, 3, ignored_token=13).tolist() == [True, False, False]
    values = exact(Probe(Echo(), 3, ignored_token=13), artifacts)
    assert values[:2].tolist() == [1, 0] and values[2].isnan()  # where nothing counts there is nothing to reproduce


@pytest.mark.parametrize("kind", ["memorizing_noise", "memorizing_backdoor"])
def test_free_generation_agrees_with_the_teacher_forced_pass(kind, request):
    subject = request.getfixturevalue(kind)
    model, artifacts = subject.model, subject.dataset.artifacts
    found = Probe.of(model, subject.dataset, 5)
    targets, loss_mask = found.targets(artifacts)
    same = ((found.generated(artifacts) == targets) | ~loss_mask).all(1)
    assert torch.equal(same.double(), exact(found, artifacts)) and same.any() and not same.all()
