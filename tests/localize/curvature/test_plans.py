"""Plans of the curvature methods: exact passes, and a peak for a model of 6.9 billion parameters."""

from dataclasses import replace

import pytest
import torch
from tiny import new_model, new_task

from tinymem.localize.cache import Cache
from tinymem.localize.curvature import factors
from tinymem.models.known_configs import known_config
from tinymem.planning.memory import shape_of
from tinymem.planning.plan import Sizes, plan

pytestmark = pytest.mark.slow  # a plan takes seconds

SIZES = Sizes(forget=10, retain=24, length=12, prompt=6, microbatch=4)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cached", [True, False])
def test_the_number_of_passes(method_and_settings, layers, cached, tmp_path, monkeypatch):
    """Counted at the output layer, with the factors in several groups."""
    monkeypatch.setattr(factors, "HELD", 2 * (8**2 + 32**2))
    (method, hp), model, counts = method_and_settings, new_model("gpt_neox", layers), [0, 0]

    def forward(module, inputs, output):
        counts[0] += 1
        if output.requires_grad:
            output.register_hook(lambda gradient: counts.__setitem__(1, counts[1] + 1))

    model.get_output_embeddings().register_forward_hook(forward)
    for _ in method.run(model, new_task(microbatch=4, cache=Cache(tmp_path, {}) if cached else None), hp):
        pass
    planned = plan(method, shape_of(model.config, torch.float32), SIZES, hp)
    assert [planned.forward, planned.backward] == counts


def test_the_peak_is_measured_on_fake_tensors(method_and_settings):
    """At least a copy of what is edited."""
    method, hp = method_and_settings
    shape = shape_of(known_config("pythia-70m"), torch.float32)
    planned = plan(method, shape, replace(SIZES, retain=200), hp)  # a factor needs 2048 tokens
    assert planned.beside >= 4 * 2 * 6 * 512 * 2048


@pytest.mark.parametrize("name", ["kfac", "kfade"])
def test_other_text_need_not_be_there_for_a_plan(name, curvature):
    """It has as many passes as with as many retain sequences, and the same peak."""
    method, shape = curvature[name], shape_of(new_model("gpt_neox").config, torch.float32)
    one, other = (
        plan(method, shape, SIZES, method.hyper_parameters(factor_data=text, factor_sequences=24))
        for text in (None, "missing.txt")
    )
    assert one == other


@pytest.mark.parametrize("name, beside", [("kfac", 40e9), ("svd", 15e9)])
def test_a_plan_of_pythia_6_9b_holds_one_group_of_factors(name, beside, curvature):
    """All factors would take 73 GB."""
    shape = shape_of(known_config("pythia-6.9b"), torch.bfloat16)
    sizes = Sizes(forget=505, retain=2000, length=80, prompt=32, microbatch=4)
    method = curvature[name]
    planned = plan(method, shape, sizes, method.hyper_parameters())
    assert 8e9 < planned.beside < beside


@pytest.mark.parametrize("name", ["kfac", "svd"])
def test_a_strength_that_changes_nothing_hides_no_peak(name, curvature):
    """All of the mass is the largest of these strengths, and takes no memory."""
    method, shape = curvature[name], shape_of(new_model("gpt_neox").config, torch.float32)
    with_it, without = (plan(method, shape, SIZES, method.hyper_parameters(rho=rho)) for rho in ((0.6, 1.0), (0.6,)))
    assert with_it == without and without.beside > 4 * 4 * 32 * 8  # at least a copy of the matrices


def test_a_plan_holds_the_predictions_of_all_rows_that_kfade_measures(curvature):
    """It runs on 8 of 24 retain rows: the others have 11 predictions each, of 14 tokens."""
    method, shape = curvature["kfade"], shape_of(new_model("gpt_neox").config, torch.float32)
    few, more = (plan(method, shape, SIZES, method.hyper_parameters(kl_sequences=count)).beside for count in (8, 100))
    assert more - few == 4 * 16 * 11 * 14


def test_a_plan_of_several_steps_is_that_of_a_run_with_a_cache(curvature, monkeypatch):
    """One group of bases is held at a time, however many steps use them."""
    monkeypatch.setattr(factors, "HELD", 1)
    method, shape = curvature["kfade"], shape_of(new_model("gpt_neox", layers=3).config, torch.float32)
    one, three = (plan(method, shape, SIZES, method.hyper_parameters(newton_steps=steps)).beside for steps in (1, 3))
    assert one == three


def test_a_plan_of_ssd_holds_the_importances_of_both_sets(curvature):
    """Two float32 tensors beside the new values; also where a batch has many tokens."""
    method, shape = curvature["ssd"], shape_of(known_config("pythia-70m"), torch.float32)
    assert plan(method, shape, SIZES, method.hyper_parameters()).beside > 3 * 4 * shape.mlp_entries
    small, many = shape_of(new_model("gpt_neox").config, torch.float32), 3000
    sizes = replace(SIZES, forget=2 * many, retain=2 * many, microbatch=many)
    assert plan(method, small, sizes, method.hyper_parameters()).forward == 4
