import pytest
import torch

from tinymem.metrics import memorization
from tinymem.metrics.memorization import memorized, percent, recovered, reproduces


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
    # Row 0: prompt 0 1, then 2 3 follow. Row 1: 3 should come out and 9 is asked. Row 2: one token is left, 6 after 5.
    assert reproduces(Echo(), prompt, target, ends, 2).tolist() == [True, False, True]
    assert reproduces(Echo(), prompt, target, ends, 3).tolist() == [False, False, True]
    assert reproduces(Echo(), prompt, target, ends, 1, batch_size=1).tolist() == [True, True, True]


@pytest.mark.parametrize("kind", ["memorizing_noise", "memorizing_backdoor"])
def test_one_forward_pass_agrees_with_greedy_generation(kind, request):
    subject = request.getfixturevalue(kind)
    model, dataset = subject.model, subject.dataset
    k = dataset.continuation
    for artifacts in (dataset.artifacts, dataset.test_artifacts):
        for function, target in ((memorized, artifacts.planted), (recovered, artifacts.clean)):
            generated = []
            for row, end, wanted in zip(artifacts.clean, artifacts.prompt_end.tolist(), target):
                prompt = row[None, :end].long()
                tokens = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), do_sample=False, eos_token_id=None,
                    max_new_tokens=min(k, len(row) - end),
                )  # fmt: skip
                generated.append(tokens[0, end:].tolist() == wanted[end : end + k].tolist())
            assert function(model, artifacts, k, batch_size=3).tolist() == generated
    flags = memorized(model, dataset.artifacts, k)
    assert flags.any() and not flags.all()  # or else the equality would say little


def test_percent_of_nothing_is_not_zero():
    assert percent(torch.tensor([], dtype=torch.bool)) is None
    assert percent(torch.tensor([True, False, False, False])) == 25.0


def test_remembering_runs_no_sequence_twice(memorizing_noise, monkeypatch):
    model, dataset = memorizing_noise.model, memorizing_noise.dataset
    artifacts, ran = dataset.artifacts, []
    run = memorization.memorized
    monkeypatch.setattr(
        memorization, "memorized", lambda model, some, *rest: ran.append(len(some)) or run(model, some, *rest)
    )
    check = memorization.remembering(model, dataset.continuation, 4)
    expected = run(model, artifacts, dataset.continuation, 4)
    assert expected.any()
    order = torch.tensor([5, 0, 0, 3])
    assert torch.equal(check(artifacts.select(order)), expected[order])
    assert torch.equal(check(artifacts), expected)
    assert torch.equal(check(artifacts.select(order)), expected[order])
    assert ran == [3, len(artifacts) - 3, 0]
    other = artifacts.select(order)
    other.prompt_end[:] += 1  # another prompt is another question
    check(other)
    assert ran[-1] == 3
