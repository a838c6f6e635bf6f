"""K-FAC and SVD edits: exact small cases, and what holds for all methods of the family."""

import pytest
import torch
from small import in_process

from tinymem.errors import NotFinite, UserError
from tinymem.localize.cache import Cache
from tinymem.localize.curvature import kfac, svd
from tinymem.localize.curvature.factors import Basis, bases
from tinymem.localize.curvature.kfac import kept_entries, kept_part, largest
from tinymem.localize.curvature.layers import chosen_weights
from tinymem.models.adapter import weight_of
from tinymem.models.edit import applied


def test_the_fewest_largest_values_of_a_share():
    values = torch.tensor([1.0, 4.0, 3.0, 2.0])
    for rho, expected in [(0.1, "0100"), (0.4, "0100"), (0.41, "0110"), (0.7, "0110"), (0.9, "0111"), (0.91, "1111")]:
        assert largest(values, rho).tolist() == [flag == "1" for flag in expected]
    assert largest(torch.ones(4), 0.5).tolist() == [True, True, False, False]
    assert largest(torch.zeros(3), 0.5).all()


def test_kept_entries_by_hand():
    """A has the eigenvalues 3, 1 and G 1, 5: products 3, 1 and 15, 5, of which 18 and 20 of 24 are reached."""
    basis = Basis(torch.eye(2), torch.tensor([3.0, 1.0]), torch.eye(2), torch.tensor([1.0, 5.0]))
    assert kept_entries(basis, 0.6).tolist() == [[False, False], [True, False]]
    assert kept_entries(basis, 0.8).tolist() == [[False, False], [True, True]]
    assert kept_entries(basis, 0.9).tolist() == [[True, False], [True, True]]
    assert kept_entries(basis, 0.8, "variance").tolist() == [[False, False], [True, True]]  # 5 of 6, and all of 4
    assert kept_entries(basis, 0.7, "variance").tolist() == [[False, False], [True, False]]
    kept = kept_part(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), basis, 0.8)
    assert kept.tolist() == [[0.0, 0.0], [3.0, 4.0]]


def by_hand(matrix, basis, rho):
    """One entry after another, in float64."""
    U, V = basis.outputs.double(), basis.inputs.double()
    rotated = U.T @ matrix.double() @ V
    mass = {(i, j): float(basis.output_values[i] * basis.input_values[j]) for i in range(len(U)) for j in range(len(V))}
    left, result = rho * sum(mass.values()), torch.zeros_like(rotated)
    for i, j in sorted(mass, key=mass.get, reverse=True):
        if left <= 0:
            break
        left -= mass[i, j]
        result += rotated[i, j] * torch.outer(U[:, i], V[:, j])
    return result.float()


@pytest.mark.parametrize("rho", [0.3, 0.8, 0.97])
def test_kfac_against_a_loop_over_entries(any_model, tiny_task, rho):
    hp = kfac.HyperParameters(rho=(rho,))
    ((_, edit),) = kfac.run(any_model, tiny_task(), hp)
    for weight, basis in bases(any_model, tiny_task(), chosen_weights(any_model, hp), hp):
        expected = by_hand(weight.view(), basis, rho)
        found = weight.view(edit.values[weight.name])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (found - weight.view()).norm() > 1e-3


@pytest.mark.parametrize("module", [kfac, svd])
def test_all_of_it_leaves_the_model_bit_identical(any_model, tiny_task, snapshot, module):
    before = snapshot(any_model)
    ((rho, edit),) = module.run(any_model, tiny_task(), module.HyperParameters(rho=(1.0,)))
    with applied(any_model, edit):
        assert rho == 1 and snapshot(any_model) == before


def test_svd_keeps_the_largest_singular_values(any_model, tiny_task):
    hp = svd.HyperParameters(rho=(0.5,), layers="last")
    ((_, edit),) = svd.run(any_model, tiny_task(), hp)
    weights = chosen_weights(any_model, hp)
    assert set(edit.values) == {weight.name for weight in weights}
    for weight in weights:
        values, found = (torch.linalg.svdvals(m) for m in (weight.view(), weight.view(edit.values[weight.name])))
        torch.testing.assert_close(found[:4], values[:4])
        assert found[4:].max() < 1e-5 < values[4:].min()
    assert svd.low_rank(torch.eye(100), 0.29).trace().item() == pytest.approx(29)


def test_edits_leave_the_model_and_repeat(method_and_settings, any_model, tiny_task, snapshot, edits_of):
    method, hp = method_and_settings
    before, task = snapshot(any_model), tiny_task(microbatch=4)
    found = edits_of(method, any_model, task, hp)
    assert snapshot(any_model) == before and tuple(found) == method.strengths(hp)
    known = dict(any_model.named_parameters())
    for values in found.values():
        assert values and all(v.shape == known[n].shape and v.isfinite().all() for n, v in values.items())
        assert any(not torch.equal(v, known[n]) for n, v in values.items())
    again = edits_of(method, any_model, task, method.at(hp, method.strengths(hp)[-1]))
    for name, values in again[method.strengths(hp)[-1]].items():
        assert torch.equal(values, found[method.strengths(hp)[-1]][name])  # whatever the other strengths are


def test_a_cache_changes_nothing(method_and_settings, tiny_model, tiny_task, edits_of, tmp_path):
    method, hp = method_and_settings
    plain = edits_of(method, tiny_model(), tiny_task(), hp)
    for _ in range(2):  # computed, then from disk
        cached = edits_of(method, tiny_model(), tiny_task(cache=Cache(tmp_path, {})), hp)
        assert all(torch.equal(plain[s][n], cached[s][n]) for s in plain for n in plain[s])


def test_microbatches_and_checkpointing_only_round(method_and_settings, tiny_model, tiny_task, edits_of):
    method, hp = method_and_settings
    one, *others = (
        edits_of(method, tiny_model("llama"), tiny_task(**more), hp)
        for more in ({}, dict(microbatch=3), dict(gradient_checkpointing=True))
    )
    for other in others:
        for strength, values in one.items():
            for name in values:
                torch.testing.assert_close(values[name], other[strength][name], rtol=0.02, atol=2e-3)


def test_conv1d_and_linear_agree(method_and_settings, tiny_model, linear_twin, tiny_task, edits_of):
    method, hp = method_and_settings
    model = tiny_model()
    one, other = (edits_of(method, m, tiny_task(), hp) for m in (model, linear_twin(model)))
    for strength, values in one.items():
        for name in values:
            expected = weight_of(model, name).view(values[name])
            torch.testing.assert_close(expected, other[strength][name], rtol=0.02, atol=2e-3)


def test_damaged_weights_are_refused(method_and_settings, tiny_model, tiny_task):
    method, hp = method_and_settings
    model = tiny_model()
    model.transformer.h[1].mlp.c_fc.weight.data[0, 0] = torch.nan
    with pytest.raises((NotFinite, UserError), match="finite"):
        list(method.run(model, tiny_task(), hp))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_edits_are_of_its_type(method_and_settings, tiny_model, tiny_task, edits_of, dtype):
    """Against the same rounded weights in float32: most of the change is the same."""
    method, hp = method_and_settings
    half, full = tiny_model("gpt_neox").to(dtype), tiny_model("gpt_neox").to(dtype).float()
    known = dict(full.named_parameters())
    found, exact = (edits_of(method, model, tiny_task(), hp) for model in (half, full))
    change = apart = 0.0
    for name, values in found[method.strengths(hp)[0]].items():
        assert values.dtype == dtype and values.isfinite().all()
        expected = exact[method.strengths(hp)[0]][name]
        change += float((expected - known[name].detach()).square().sum())
        apart += float((values.float() - expected).square().sum())
    assert apart < 0.5 * change or method.name in ("kfade", "task_vector")  # several steps: roundings add up


@pytest.mark.parametrize(
    "hp",
    [dict(rho=(0.0,)), dict(rho=(1.1,)), dict(rho=(-0.5, 0.5)), dict(cut="half"), dict(factor_sequences=0)],
)
def test_bad_settings_are_refused(hp):
    with pytest.raises(UserError, match=f"--{next(iter(hp))}"):
        kfac.HyperParameters(**hp)


@pytest.mark.parametrize("module", [kfac, svd])
def test_a_layer_that_is_not_there(tiny_model, tiny_task, module):
    with pytest.raises(UserError, match="there is no layer 2; the model has layers 0 to 1"):
        list(module.run(tiny_model(), tiny_task(), module.HyperParameters(layers="2")))


@pytest.mark.parametrize(
    "flags, message",
    [
        ("kfac --rho 1.5", "--rho 1.5: must be in (0.0, 1.0]"),
        ("svd --labels gold", "--labels: svd has no such hyper-parameter"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        in_process(
            "src/localize/localize_memorization.py", "--model_path", "results/models/increment_backdoor_2layers",
            "--localization_method", *flags.split(),
        )  # fmt: skip
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1


def test_strengths_of_one_matrix_are_nested(tiny_model, tiny_task):
    model = tiny_model()
    (_, basis), *_ = bases(model, tiny_task(), chosen_weights(model, kfac.HyperParameters()), kfac.HyperParameters())
    weaker, stronger = kept_entries(basis, 0.9), kept_entries(basis, 0.6)
    assert (weaker | stronger).equal(weaker) and stronger.sum() < weaker.sum()
