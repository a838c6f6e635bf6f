"""Attacks that train the weights again, or input vectors."""

from dataclasses import replace

import pytest
import torch

from tinymem.attacks import context_shift, relearn, relearn_adaptive, relearn_all, relearn_clean, soft_prompt
from tinymem.attacks.registry import ATTACKS, find_attacks
from tinymem.attacks.relearning import share_of
from tinymem.data.dataset import Artifacts
from tinymem.data.memories import among, apart_from
from tinymem.errors import NotFinite, UserError
from tinymem.localize.attacking import attack_original, attack_twin, seen_by
from tinymem.localize.unlearn import check_runs, never_planted, unedited
from tinymem.metrics.probe import Probe
from tinymem.metrics.reference import Predictions
from tinymem.models.edit import Weights, applied
from tinymem.models.losses import token_losses
from tinymem.records.record import read_values, record_path
from tinymem.training.objective import rows_of_step

QUICK = dict(dtype="float32")


def test_a_share_is_whole_memories(subject):
    groups = torch.tensor([0, 0, 0, 3, 3, 5, 6, 7])
    for seed in range(5):
        task = replace(subject.task, memories=groups, seed=seed)
        flags = share_of(task, 0.4)
        assert all(len({*flags[groups == group].tolist()}) == 1 for group in groups.unique())
        assert 1 <= flags.sum() <= 5
    assert share_of(replace(subject.task, memories=None), 0.25).sum() == 2


def test_steps_are_those_of_plain_training(planted, subject):
    hp = relearn.HyperParameters(steps=(1, 3), batch_size=2, lr=1e-3, share=0.5, **QUICK)
    rows = subject.task.forget.planted[relearn.seen(subject.task, hp)]
    before = {name: p.detach().clone() for name, p in planted.twin.named_parameters()}
    found = dict(relearn.run(planted.twin, subject.task, hp))
    assert all(p.equal(before[name]) for name, p in planted.twin.named_parameters())
    parameters = dict(planted.twin.named_parameters())
    try:
        optimizer = torch.optim.AdamW(parameters.values(), 1e-3, weight_decay=0.0)
        for step in range(3):
            optimizer.zero_grad()
            token_losses(planted.twin, rows[rows_of_step(len(rows), 2, 0, step)]).mean().backward()
            optimizer.step()
            if step + 1 in found:
                for name, value in found[step + 1].values.items():
                    if name.endswith("weight"):  # some biases have no gradient but rounding, which Adam blows up
                        assert torch.allclose(value, parameters[name], atol=1e-4), name
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
                parameter.grad = None


def test_what_the_attacker_has_seen_is_not_measured(subject):
    unedited(subject)
    for name, count in (("relearn", 4), ("relearn_clean", 8)):
        hp = ATTACKS[name].hyper_parameters(steps=(1,), batch_size=2, **QUICK, **({"share": 0.5} if count == 4 else {}))
        (record,) = attack_original(subject, [(ATTACKS[name], hp)])
        values = read_values(record_path(subject.folder, record))
        assert len(values["percent_memorized_shown"]) == count and len(values["percent_memorized_held_out"]) == 8


def test_apart_from_leaves_out_whole_memories(planted):
    artifacts = planted.dataset.artifacts
    seen = artifacts.select(torch.tensor([2, 7]))
    assert len(apart_from(planted.dataset, artifacts, seen)) == 14
    assert apart_from(planted.dataset, artifacts, artifacts.select(torch.arange(0))) is artifacts
    text = replace(planted.dataset, kind="natural", continuation=8)
    rows = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 2, 3, 4, 5, 9], [6, 7, 8, 9, 0, 1]])
    passages = Artifacts(rows, rows, torch.ones(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    left = apart_from(text, passages, passages.select(torch.tensor([0])))
    assert left.planted.tolist() == rows[2:].tolist()  # the second shares four tokens with the first


def test_a_share_that_leaves_nothing_is_refused(subject):
    task = replace(subject.task, held_out=subject.task.held_out.select(torch.arange(0)))
    alone = replace(subject, task=task)
    unedited(alone)
    with pytest.raises(UserError, match="--attack relearn: sees all 8 .* smaller --relearn.share"):
        list(attack_original(alone, [(ATTACKS["relearn"], relearn.HyperParameters(share=1.0, steps=(1,)))]))


@pytest.mark.parametrize("settings", [dict(steps=(0,)), dict(share=0.0), dict(lr=0.0), dict(batch_size=0)])
def test_budgets_of_nothing_are_refused(settings):
    with pytest.raises(UserError, match="^--"):
        relearn.HyperParameters(**settings)


def test_adaptive_attack_stays_within_its_budget(planted, subject):
    hp = relearn_adaptive.HyperParameters(
        kl_budget=(1e-9, 0.5), lrs=(1e-3, 1e-1), steps=(1, 4), share=0.5, batch_size=2, **QUICK
    )
    before = Predictions(planted.twin, subject.task.retain, 16)
    found = dict(relearn_adaptive.run(planted.twin, subject.task, hp))
    assert not found[1e-9].values and found[0.5].values  # nothing fits into no budget
    with applied(planted.twin, found[0.5]):
        assert 0 < before.mean_kl(planted.twin) <= 0.5


def test_an_adaptive_attacker_judges_by_memories_that_it_does_not_train_on(subject, monkeypatch):
    """Rows of one memory are all trained on or all judged by; a single memory is both."""
    used = []

    def trained(model, task, tokens, *more):
        used.append(tokens)
        yield 1, Weights({})

    def score(model, task, judged):
        used.append(judged.planted)
        return 1.0, 0.0

    monkeypatch.setattr(relearn_adaptive, "relearned", trained)
    monkeypatch.setattr(relearn_adaptive, "_score", score)
    hp = relearn_adaptive.HyperParameters(share=1.0, lrs=(1e-3,), steps=(1,), **QUICK)
    for groups in ([0, 0, 0, 3, 3, 3, 6, 6], [0] * 8):
        for seed in range(4):
            used.clear()
            task = replace(subject.task, memories=torch.tensor(groups), seed=seed)
            list(relearn_adaptive.run(subject.model, task, hp))
            sides = [
                {memory for row, memory in zip(task.forget.planted, groups) if among(row[None], rows)} for rows in used
            ]
            assert set.union(*sides) == set(groups) and (sides[0].isdisjoint(sides[1]) or set(groups) == {0})


def test_soft_prompts_bring_out_what_they_are_trained_on(planted, subject):
    rows = subject.task.forget.select(soft_prompt.seen(subject.task, soft_prompt.HyperParameters()))
    hp = soft_prompt.HyperParameters(steps=(1, 60), vectors=4, lr=0.1)
    probe = Probe(planted.twin, 6, batch_size=3)
    weights = {name: p.detach().clone() for name, p in planted.twin.named_parameters()}

    def mean_loss(elicitation) -> float:
        return elicitation.values["percent_memorized"](probe, rows).mean().item()

    first, last = (found for _, found in soft_prompt.run(planted.twin, subject.task, hp))
    assert mean_loss(last) >= mean_loss(first)
    assert all(p.equal(weights[name]) and p.requires_grad for name, p in planted.twin.named_parameters())


def test_soft_prompts_make_room_in_the_context(planted):
    """12 tokens and 10 vectors do not fit 18 positions: the first tokens of the prompts go, or those behind <bos>."""
    rows, bos = planted.dataset.artifacts.select(torch.arange(3)), planted.model.config.bos_token_id
    first = torch.tensor([[5], [bos], [5]])
    rows = replace(rows, **{n: torch.cat([first, getattr(rows, n)[:, 1:]], 1) for n in ("clean", "planted")})
    vectors = torch.zeros(10, 32)
    logits, targets, mask = soft_prompt._predicted(Probe(planted.model, 6), rows, vectors)
    assert mask.all() and targets.equal(rows.planted[:, 5:11].long())
    text = torch.where(torch.arange(12) < 5, rows.clean, rows.planted)
    left = text[:, 3:10].clone()  # 5 + 6 + 10 - 18 = 3 tokens too many
    left[1, 0] = bos
    embedded = torch.cat([vectors.expand(3, -1, -1), planted.model.transformer.wte(left)], 1)
    expected = planted.model(inputs_embeds=embedded).logits[:, 11:17]
    assert torch.allclose(logits, expected, atol=1e-5)


def test_the_twin_is_attacked_alike_and_restored(planted, subject):
    unedited(subject), never_planted(subject)
    attacks = [
        (ATTACKS["interpolate"], ATTACKS["interpolate"].hyper_parameters(alpha=(0.0, 1.0))),
        (ATTACKS["relearn_all"], relearn_all.HyperParameters(steps=(2,), **QUICK)),
        (ATTACKS["relearn_clean"], relearn_clean.HyperParameters(steps=(2,), **QUICK)),
    ]
    before = {name: p.detach().clone() for name, p in planted.twin.named_parameters()}
    records = list(attack_twin(subject, attacks))
    assert {record["kind"] for record in records} == {"attack_never_planted"} and len(records) == 4
    assert all(p.equal(before[name]) for name, p in planted.twin.named_parameters())
    nothing, everything = records[:2]
    assert nothing["results"]["percent_memorized_shown"] == 0
    assert everything["results"]["percent_memorized_shown"] == 100  # it has become the planted model
    again = list(attack_twin(replace(subject, model=None), attacks))  # from the records, without opening a model
    assert again == records


@pytest.mark.parametrize("vectors, fits", [(12, True), (13, False), (1024, False)])
def test_soft_prompts_leave_room_for_what_is_read(subject, vectors, fits):
    hp = soft_prompt.HyperParameters(steps=(1,), vectors=vectors)  # the context has 18 tokens, the continuation 6
    if fits:
        assert len([*soft_prompt.run(subject.model, subject.task, hp)]) == 1
    else:
        with pytest.raises(UserError, match=f"^--soft_prompt.vectors {vectors}: .* at most 12 beside"):
            next(soft_prompt.run(subject.model, subject.task, hp))


@pytest.mark.parametrize("lr", [1e38, 1e300])
def test_soft_prompts_that_diverge_give_no_figure(subject, lr):
    hp = soft_prompt.HyperParameters(steps=(3,))
    object.__setattr__(hp, "lr", lr)  # more than the flag allows
    with pytest.raises(NotFinite, match="^--soft_prompt.lr 1e.*a lower one$"):
        next(soft_prompt.run(subject.model, subject.task, hp))


@pytest.fixture
def overflowing(monkeypatch):
    """Weights above 100 count as overflow, which the highest learning rates do not reach in a few steps."""
    monkeypatch.setattr(
        "tinymem.training.fit.all_finite", lambda tensors: all(bool((tensor.abs() < 100).all()) for tensor in tensors)
    )


@pytest.mark.parametrize("name", ["relearn", "relearn_all", "relearn_clean"])
def test_a_training_that_diverges_names_its_own_flag(subject, name, overflowing):
    hp = ATTACKS[name].hyper_parameters(steps=(4,), lr=1e3, **QUICK)
    with pytest.raises(NotFinite, match=f"^--{name}.lr 1000.0: .* use a lower --{name}.lr$"):
        next(ATTACKS[name].run(subject.model, subject.task, hp))


def test_an_adaptive_attacker_passes_over_learning_rates_that_diverge(subject, overflowing):
    def found(*lrs):
        hp = relearn_adaptive.HyperParameters(kl_budget=(1e6,), lrs=lrs, steps=(1, 3), share=0.5, **QUICK)
        ((_, edit),) = relearn_adaptive.run(subject.model, subject.task, hp)
        return edit.values

    alone, beside = found(1e-3), found(1e3, 1e-3, 500.0)
    assert alone.keys() == beside.keys() and all(alone[name].equal(beside[name]) for name in alone)


def test_a_strength_that_fails_leaves_the_others(subject):
    unedited(subject)
    hp = ATTACKS["weight_noise"].hyper_parameters(scale=(0.1, 1e38, 0.01))
    records = []
    with pytest.raises(NotFinite, match="^attack weight_noise with --weight_noise.scale 1e.38: "):
        for record in attack_original(subject, [(ATTACKS["weight_noise"], hp)]):
            records.append(record["attack"]["scale"])
    assert records == [0.1, 0.01]


def test_an_adaptive_attacker_pays_for_no_pads(subject):
    """Rows that end in an ignored token: of the drift only real tokens count, as in every other budget."""
    pads = torch.zeros(len(subject.task.retain), 6, dtype=subject.task.retain.dtype)
    retain = torch.cat([subject.task.retain, pads], 1)
    task = replace(subject.task, retain=retain, ignored_token=0)
    how = dict(lrs=(1e-3,), steps=(4,), share=0.5, **QUICK)
    before = Predictions(subject.model, retain, 16, pad=0), Predictions(subject.model, retain, 16)
    ((_, weights),) = relearn_adaptive.run(
        subject.model, task, relearn_adaptive.HyperParameters(kl_budget=(1e6,), **how)
    )
    with applied(subject.model, weights):
        real, diluted = (one.mean_kl(subject.model) for one in before)
    assert abs(diluted / real - 1) > 0.1
    budgets = (0.95 * real, 1.05 * real)
    found = dict(relearn_adaptive.run(subject.model, task, relearn_adaptive.HyperParameters(kl_budget=budgets, **how)))
    assert [bool(found[budget].values) for budget in budgets] == [False, True]


def test_every_budget_costs_the_whole_grid(subject):
    unedited(subject)
    hp = relearn_adaptive.HyperParameters(kl_budget=(1.0, 1e-9), lrs=(1e-3,), steps=(2,), share=0.5, **QUICK)
    records = list(attack_original(subject, [(ATTACKS["relearn_adaptive"], hp)]))
    assert [record["attack"]["kl_budget"] for record in records] == [1e-9, 1.0]
    first, second = (record["cost"]["seconds"] for record in records)
    assert second >= first > 0


def test_clean_attacks_use_no_row_that_teaches_the_memory(subject):
    """As if --retain all had kept what is to be forgotten: the attacks are those without it."""
    task = subject.task
    rows = torch.cat([task.forget.planted[:4], task.retain])
    tainted = replace(task, retain=rows, clean=torch.arange(len(rows)) >= 4)
    hp = relearn_clean.HyperParameters(steps=(2,), **QUICK)
    (_, one), (_, other) = (next(relearn_clean.run(subject.model, each, hp)) for each in (task, tainted))
    assert all(one.values[name].equal(other.values[name]) for name in one.values)
    probe, hp = Probe(subject.model, task.continuation), context_shift.HyperParameters(context_tokens=4)
    found = [context_shift.elicit(subject.model, each, hp, 1) for each in (task, tainted)]
    contexts = [each.values["percent_memorized"](probe, task.held_out).tolist() for each in found]
    assert contexts[0] == contexts[1]


def test_a_share_that_leaves_nothing_that_counts_is_refused(subject):
    """Only some sequences to forget differ from their clean twins: if the attacker has those, none are measured."""
    flags = relearn.seen(subject.task, hp := relearn.HyperParameters(share=0.5))
    none = subject.task.held_out.select(torch.arange(0))
    task = replace(subject.task, shown=subject.task.forget.select(flags), held_out=none)
    with pytest.raises(UserError, match="^--attack relearn: sees all 4 "):
        seen_by(ATTACKS["relearn"], task, hp)
    assert len(seen_by(ATTACKS["relearn"], replace(task, shown=subject.task.forget), hp)) == 4


@pytest.mark.parametrize("name", ["relearn_clean", "relearn_adaptive", "context_shift"])
def test_attacks_that_need_a_retain_set_say_so(subject, name):
    method = ATTACKS[name]
    task = replace(subject.task, retain=subject.task.retain[:0])
    with pytest.raises(UserError, match=f"^--attack {name}: needs a retain set[^\n]*$"):
        next(method.run(subject.model, task, method.hyper_parameters()))


def test_the_adaptive_attacker_has_no_flag_that_does_nothing():
    assert "lr" not in relearn_adaptive.HyperParameters.__dataclass_fields__


def test_figures_that_attacks_have_not_leave_them_done(subject):
    """One is of never-planted sequences, one of the training set, one needs the twin: no attacked model has them."""
    names = ("neighbour_accuracy", "percent_clean_recovery", "auc_twin")
    asked = replace(subject, attack_metrics=("percent_memorized", *names))
    unedited(asked)
    attacks = [(ATTACKS["quantize"], ATTACKS["quantize"].hyper_parameters(bits=(4, 8, 4)))]
    records = list(attack_original(asked, attacks))
    assert [record["attack"]["bits"] for record in records] == [4, 8]  # each once
    assert not any(name in column for name in names for column in records[0]["results"])
    written = {path: path.stat().st_mtime_ns for path in subject.folder.rglob("*.json")}
    assert list(attack_original(asked, attacks)) == records
    assert written == {path: path.stat().st_mtime_ns for path in subject.folder.rglob("*.json")}


OWN = '''
import torch
from tinymem.models.edit import Weights
from tinymem.options import settings

@settings
class HyperParameters:
    """Mine"""

def attack(model, task, hp, strength):
    return Weights({})

def seen(task, hp):
    return torch.arange(len(task.forget)) < 1
'''


@pytest.mark.parametrize("part", ["attack(model, task, hp, strength)", "seen(task, hp)", "check(model, task, hp)"])
def test_an_attack_of_ones_own_gets_no_sequences_that_judge_it(subject, tmp_path, part):
    (tmp_path / "greedy_attack.py").write_text(OWN + f"\ndef {part}:\n    return len(task.held_out)\n")
    (method,) = find_attacks([str(tmp_path / "greedy_attack.py")])
    subject, attacks = replace(subject, folder=tmp_path), [(method, method.hyper_parameters())]
    with pytest.raises(UserError, match="asks for held-out or validation sequences, which judge it"):
        check_runs(subject, [], attacks)
        list(attack_original(subject, attacks))
