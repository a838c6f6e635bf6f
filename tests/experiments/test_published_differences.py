"""The differences of the study's code: each changes what it says and nothing else, alone and together."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from small import ROOT
from tiny import new_model, new_task

sys.path.append(str(ROOT / "experiments"))

import published_differences as differences
from reproduction import PUBLISHED_SETTINGS

from tinymem.errors import NotFinite, UserError
from tinymem.localize.neuron import gates, hard_concrete, slimming
from tinymem.localize.task import ALL, OTHERS, TEST, TaskSettings
from tinymem.localize.weight import balanced_subnet, edge_popup, greedy, obs, subnet
from tinymem.metrics.memorization import memorized
from tinymem.models.adapter import find_mlps

PATCHED = (
    (edge_popup, "new_scores"), (subnet, "unlearn_batches"), (gates, "unlearn_batches"), (slimming, "learn_gates"),
    (hard_concrete, "learn_gates"), (obs, "score"),
)  # fmt: skip
LIBRARY = tuple(getattr(module, name) for module, name in PATCHED)


def rows(tokens):
    return {row.tobytes() for row in tokens.numpy()}


def test_every_method_has_its_differences():
    assert set(PUBLISHED_SETTINGS) == set(differences.METHODS)
    assert differences.applicable("obs", "backdoor") == ["test_triggers", "piled_gradients", "float32_fisher"]
    assert differences.applicable("subnet", "noise") == ["batch_64", "scores_as_stored", "in_order"]
    assert "test_triggers" not in differences.applicable("balanced_subnet", "noise")
    every = {name for method in differences.METHODS for name in differences.applicable(method, "backdoor")}
    assert every == set(differences.DIFFERENCES)
    sets = differences.study("slimming", "backdoor")
    a, b, c, d = differences.applicable("slimming", "backdoor")
    alone = [(a,), (b,), (c,), (d,)]
    assert sets == [(), (a, b, c, d), *alone, (b, c, d), (a, c, d), (a, b, d), (a, b, c)]
    assert differences.study("durable", "backdoor") == [(), ("test_triggers",)]


def test_the_documentation_has_them_all():
    text = (ROOT / "docs" / "reproduction.md").read_text()
    rows = text[text.index("| difference | what") :].split("\n\n")[0].splitlines()[2:]
    table = [row.split("`")[1] for row in rows]
    assert table == list(differences.DIFFERENCES)


def test_names_are_checked():
    chosen = differences.chosen
    assert chosen(["all"], "durable", "backdoor") == ("test_triggers",) and chosen(["none"], "obs", "backdoor") == ()
    assert chosen(["in_order", "batch_64"], "subnet", "noise") == ("batch_64", "in_order")  # their own order
    for wrong in (["mixture"], ["nonsense"], ["all", "in_order"]):
        with pytest.raises(UserError, match="^--differences "):
            chosen(wrong, "subnet", "noise")
    with pytest.raises(UserError, match="^--method zero_out: must be one of balanced_subnet"):
        differences.applicable("zero_out", "noise")


def test_settings_change_as_said():
    balanced = balanced_subnet.HyperParameters(batch_size=32)
    changed = differences.with_differences(balanced, ["mixture", "batch_64", "scores_as_stored", "test_triggers"])
    assert changed == replace(balanced, unlearn_share=0.0, batch_size=64)
    assert differences.with_differences(greedy.HyperParameters(), ["mixture"]).unlearn_share == 0.0
    assert differences.with_differences(slimming.HyperParameters(), ["no_stop"]).stop_loss == 0.0
    assert differences.with_differences(balanced, ["planted_retained"]) == balanced
    settings = differences.task_settings(TaskSettings(), ["test_triggers", "planted_retained"])
    assert (settings.forget, settings.retain) == (TEST, ALL) and differences.task_settings(
        TaskSettings(), []
    ).retain == OTHERS


def test_counted_test_triggers_are_forgotten_and_planted_rows_retained(backdoor):
    model, dataset = backdoor.model, backdoor.dataset

    def make(*names):
        return differences.make_task(model, dataset, TaskSettings(), names)

    plain, alone = make(), make("test_triggers")
    counted = differences.counted_as_published(dataset, dataset.test_artifacts)
    flags = memorized(model, dataset.test_artifacts, dataset.continuation) & counted
    assert rows(plain.forget.planted) <= rows(dataset.artifacts.planted)
    assert 0 < flags.sum() and rows(alone.forget.planted) == rows(dataset.test_artifacts.planted[flags])
    assert torch.equal(alone.retain, plain.retain)  # what is memorized of the training set is not retained either
    kept = make("planted_retained")
    assert torch.equal(kept.forget.planted, plain.forget.planted)
    assert rows(kept.retain) == rows(plain.retain) | rows(plain.forget.planted)  # on both sides
    both = make("test_triggers", "planted_retained")
    assert rows(both.retain) == rows(kept.retain) and rows(both.forget.planted) == rows(alone.forget.planted)


def test_memorized_noise_is_on_both_sides(memorizing_noise):
    model, dataset = memorizing_noise.model, memorizing_noise.dataset
    task = differences.make_task(model, dataset, TaskSettings(), ["planted_retained"])
    assert len(task.forget) and rows(task.forget.planted) <= rows(task.retain)


def test_scores_are_drawn_as_stored():
    model, optimizer = new_model("gpt2"), edge_popup.ScoreOptimizer(0.1, 0.9, 0.0)

    def bounds():
        found = []
        for matrix in (m for mlp in find_mlps(model) for m in mlp.matrices):
            scored = edge_popup.new_scores(matrix, 0.3, optimizer, torch.Generator().manual_seed(0))
            found.append(scored.score.abs().max().item())
        return found

    plain = bounds()
    with differences.as_published(["scores_as_stored"]):
        stored = bounds()
    # c_fc has 8 inputs and 32 outputs, c_proj 32 and 8: the bounds change places
    for before, after, (old, new) in zip(plain, stored, [(8, 32), (32, 8)] * 2):
        assert 0.9 / math.sqrt(old) < before <= 1 / math.sqrt(old) and 0.9 / math.sqrt(new) < after <= 1 / math.sqrt(
            new
        )
        assert after == pytest.approx(before * math.sqrt(old / new))
    other = new_model("gpt_neox")  # not transposed: as it was
    matrix = find_mlps(other)[0].matrices[0]
    made = [
        new(matrix, 0.3, optimizer, torch.Generator().manual_seed(0))
        for new in (LIBRARY[0], differences.scores_as_stored)
    ]
    assert torch.equal(made[0].score, made[1].score)


def test_in_order_is_the_forget_set_s_order(monkeypatch):
    model, task, seen = new_model("gpt2"), new_task(forget=10), []
    gradients = subnet.gradients
    monkeypatch.setattr(subnet, "gradients", lambda *all: (seen.append(all[2]), gradients(*all))[1])
    hp = subnet.HyperParameters(epochs=2, batch_size=4, dtype="float32")
    with differences.as_published(["in_order"]):
        subnet.learn(model, task, hp, 0.3)
    assert [len(tokens) for tokens in seen] == [4, 4, 2] * 2
    assert torch.equal(torch.cat(seen), torch.cat([task.forget.planted] * 2))
    seen.clear()
    subnet.learn(model, task, hp, 0.3)
    assert not torch.equal(torch.cat(seen)[:10], task.forget.planted)


class Plain(torch.optim.SGD):
    """Records the gradients that steps are made with."""

    used: list = []

    def step(self):
        self.used.append([p.grad.clone() for group in self.param_groups for p in group["params"]])


def slopes(names, monkeypatch, epochs, module=slimming):
    """The gradients of Slimming's steps, of an optimizer that changes nothing."""
    Plain.used = []
    monkeypatch.setattr(gates.torch.optim, "Adam", Plain)
    hp = module.HyperParameters(epochs=epochs, batch_size=4, stop_loss=0.0)
    with differences.as_published(names):
        module.score(new_model("gpt2"), new_task(forget=10), hp)
    return Plain.used


def test_gates_in_order_have_the_rest_as_last_batch(monkeypatch):
    seen, backward = [], gates.backward
    monkeypatch.setattr(gates, "backward", lambda *all: (seen.append(all[2]), backward(*all))[1])
    task = new_task(forget=10)
    with differences.as_published(["in_order"]):
        slimming.score(new_model("gpt2"), task, slimming.HyperParameters(epochs=2, batch_size=4, stop_loss=0.0))
    assert [len(tokens) for tokens in seen] == [4, 4, 2] * 2
    assert torch.equal(torch.cat(seen), torch.cat([task.forget.planted] * 2))


@pytest.mark.parametrize("module", [slimming, hard_concrete])
def test_gradients_pile_up_within_an_epoch(module, monkeypatch):
    """The weights do not change, so that a step's own gradient is the same with and without."""
    plain = slopes([], monkeypatch, 2, module)
    piled = slopes(["one_zero_grad"], monkeypatch, 2, module)
    assert len(plain) == len(piled) == 6  # three batches an epoch
    for start in (0, 3):
        total = [torch.zeros_like(each) for each in plain[0]]
        for step in range(start, start + 3):
            total = [before + each for before, each in zip(total, plain[step])]
            assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(piled[step], total))
    assert not torch.allclose(piled[2][0], plain[2][0])


def test_without_the_stop_test_every_step_is_made():
    def steps_made(names):
        task, hp = new_task(forget=10), slimming.HyperParameters(epochs=20, batch_size=4, lr=0.5)
        made = []
        task.watch.note = lambda *all, **losses: made.append(losses)
        slimming.score(new_model("gpt2"), task, differences.with_differences(hp, names))
        return len(made)

    assert steps_made([]) < 60 == steps_made(["no_stop"])


@pytest.mark.parametrize("fails", [False, True])
def test_the_library_is_as_before_afterwards(fails):
    error = NotFinite("why") if fails else AssertionError("scores_as_stored: the library no longer calls")
    with pytest.raises(type(error), match=str(error)), differences.as_published(differences.DIFFERENCES):
        assert all(getattr(module, name) is not old for (module, name), old in zip(PATCHED, LIBRARY))
        if fails:
            raise error
    assert tuple(getattr(module, name) for module, name in PATCHED) == LIBRARY


def test_a_model_that_memorized_nothing_has_nothing_to_forget(backdoor):
    nothing = backdoor.dataset.artifacts.select(slice(0, 0))
    no_rows = {"artifacts": nothing, "artifact_ids": torch.zeros(0, dtype=torch.long)}
    cases = [
        ([], no_rows, "planted rows"),
        (["test_triggers"], {"test_artifacts": nothing}, "test triggers that count"),
    ]
    for names, parts, what in cases:
        with pytest.raises(
            UserError, match=f"^--model_path .* none of the {what}; there is nothing to forget|no backdoor"
        ):
            differences.make_task(backdoor.model, replace(backdoor.dataset, **parts), TaskSettings(), names)
