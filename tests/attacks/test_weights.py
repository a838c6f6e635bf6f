"""Attacks that change weights without training."""

import itertools
import statistics
import zlib

import pytest
import torch

from tinymem.attacks import interpolate, prune, weight_noise
from tinymem.attacks.registry import ATTACKS
from tinymem.errors import UserError
from tinymem.localize.attacking import attack_original
from tinymem.localize.subject import Run
from tinymem.localize.unlearn import finish, unedited
from tinymem.localize.user_methods import checked
from tinymem.metrics.elicitation import Elicitation
from tinymem.metrics.memorization import memorized
from tinymem.models.adapter import linear_weights
from tinymem.models.edit import Changes, Draws, Zeros, applied, describe
from tinymem.records.cost import Cost
from tinymem.records.record import read_values, record_path


def test_pruning_by_hand():
    matrix = torch.tensor([[4.0, 0.0, -1.0], [0.5, -2.0, 0.0]])
    assert prune.pruned(matrix, 0.5).tolist() == [[4.0, 0.0, 0.0], [0.0, -2.0, 0.0]]  # two of four; zeros do not count
    assert prune.pruned(matrix, 0.1).equal(matrix) and not prune.pruned(torch.zeros(2, 2), 0.5).any()


def test_noise_has_the_requested_size_and_is_the_same_in_every_call():
    matrix = torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    noise = weight_noise.noise(matrix, 0.1, 5)
    assert noise.std().item() == pytest.approx(0.1 * matrix.std().item(), rel=0.02)
    assert noise.equal(weight_noise.noise(matrix, 0.1, 5)) and not noise.equal(weight_noise.noise(matrix, 0.1, 6))


def test_noise_differs_between_layers_and_leaves_the_output_layer(planted, subject):
    edit, *_ = weight_noise.attack(planted.model, subject.task, weight_noise.HyperParameters(), 0.1).edits
    first, second = (f"transformer.h.{layer}.mlp.c_fc.weight" for layer in (0, 1))
    weights = linear_weights(planted.model)
    added = [edit.values[name] - weights[name].parameter for name in (first, second)]
    assert edit.values[first].equal(edit.values[first])  # described and applied alike
    assert not torch.allclose(added[0] / added[0].std(), added[1] / added[1].std())
    assert "lm_head.weight" not in edit.values and len(edit.values) == 8


def test_draws_are_independent_and_the_first_is_that_of_before(planted, subject):
    name, hp = "transformer.h.1.mlp.c_fc.weight", weight_noise.HyperParameters(draws=3)
    matrix = linear_weights(planted.model)[name].view().detach()
    seed = subject.task.seed + zlib.crc32(name.encode())  # as when there was one draw
    draws = weight_noise.attack(planted.model, subject.task, hp, 0.1).edits
    first, *others = [linear_weights(planted.model)[name].view(edit.values[name]) for edit in draws]
    assert len(draws) == 3 and first.equal(matrix + weight_noise.noise(matrix, 0.1, seed))
    for one, another in itertools.combinations([first, *others], 2):
        pair = torch.stack([(one - matrix).flatten(), (another - matrix).flatten()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.1
    again = (
        weight_noise.attack(planted.twin, subject.task, hp, 0.1).edits[2].values[name]
    )  # the twin meets the same noise
    theirs = linear_weights(planted.twin)[name].view().detach()
    added = (linear_weights(planted.twin)[name].view(again) - theirs) / theirs.std()
    assert torch.allclose(added, (others[1] - matrix) / matrix.std(), atol=1e-5)


def test_records_of_one_draw_are_those_of_before():
    settings = ATTACKS["weight_noise"].settings
    assert settings(weight_noise.HyperParameters(draws=1), 0.1) == {"name": "weight_noise", "scale": 0.1}
    assert settings(weight_noise.HyperParameters(), 0.1) == {"name": "weight_noise", "scale": 0.1, "draws": 5}


def test_a_record_holds_the_means_of_its_draws(planted, subject):
    def attacked(draws):
        hp = weight_noise.HyperParameters(scale=(0.4,), draws=draws)
        (record,) = attack_original(subject, [(ATTACKS["weight_noise"], hp)])
        return record["results"], read_values(record_path(subject.folder, record))

    unedited(subject)
    draws = weight_noise.attack(planted.model, subject.task, weight_noise.HyperParameters(draws=3), 0.4).edits
    single, came_out = [], []
    for edit in draws:
        with applied(planted.model, edit):
            single.append(subject.attacked().measurement(["perplexity"]).row["perplexity"])
            came_out.append(memorized(planted.model, subject.task.forget, subject.task.continuation).double())
    results, values = attacked(3)
    shares = torch.stack(came_out).mean(0)
    assert len(set(single)) == 3 and results["perplexity"] == statistics.fmean(single)  # not exp of the mean loss
    assert results["percent_memorized_shown"] == pytest.approx(100 * shares.mean().item())
    assert values["percent_memorized_shown"].tolist() == pytest.approx(shares.tolist()) and 0 < shares.mean() < 1
    assert results["relative_change"] == statistics.fmean(
        describe(planted.model, edit)["relative_change"] for edit in draws
    )
    results, values = attacked(1)
    assert results["perplexity"] == single[0]
    assert values["percent_memorized_shown"].tolist() == came_out[0].tolist()


def test_no_method_may_give_draws(subject):
    unedited(subject)
    about = {"kind": "measured", "parent": subject.unedited_digest, **subject.identity, "method": {"name": "noisy"}}
    with pytest.raises(UserError, match=r"^noisy: gives several edits \(Draws\), which only an attack may$"):
        list(finish(Run(subject, about), Draws((Zeros({}),)), Cost()))


def test_what_ones_own_attack_gives_is_checked(planted):
    good = Draws((Zeros({}), Zeros({})))
    assert checked("mine", (), planted.model, good) == good
    with pytest.raises(ValueError, match="^its Draws have no edits$"):
        checked("mine", (), planted.model, Draws(()))
    with pytest.raises(TypeError, match="^it gave a int, not an edit"):
        checked("mine", (), planted.model, Draws((Zeros({}), 3)))
    with pytest.raises(
        ValueError, match=r"^its Elicitation needs ELICITS = \('my_metric',\), the metrics that it reads"
    ):
        checked("mine", (), planted.model, Elicitation({"my_metric": lambda probe, artifacts: None}, 5))


def test_changes_know_the_weights_before():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    layer = model[0]
    before = layer.weight.detach().clone()
    changes = Changes()
    Zeros({"0.weight": torch.tensor([[True, False, False], [False, False, True]])}).apply(model, changes)
    changes.replace(layer.bias, torch.ones(2))
    assert changes.before(layer.weight).equal(before) and (layer.weight == 0).sum() == 2
    changes.undo()
    assert layer.weight.equal(before)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_interpolation_returns_to_the_original(planted, subject, alpha):
    from dataclasses import replace

    model, name = planted.model, "transformer.h.1.mlp.c_proj.weight"
    before = model.get_parameter(name).detach().clone()
    task = replace(subject.task, original=lambda key: before if key == name else model.get_parameter(key).detach())
    mask = torch.zeros(before.T.shape, dtype=torch.bool)
    mask[3] = True
    with applied(model, Zeros({name: mask})):
        edited = model.get_parameter(name).detach().clone()
        with applied(model, interpolate.attack(model, task, interpolate.HyperParameters(), alpha)):
            assert torch.allclose(model.get_parameter(name), (1 - alpha) * edited + alpha * before, atol=1e-7)
            assert alpha != 1 or model.get_parameter(name).equal(before)
    assert not interpolate.attack(
        model, subject.task, interpolate.HyperParameters(), 0.5
    ).values  # nothing to return to
