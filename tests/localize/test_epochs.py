"""Epochs of methods: passes of whole batches, as their help says."""

import dataclasses

import pytest

from tinymem.localize.registry import METHODS


@pytest.mark.parametrize("name", [name for name in METHODS if hasattr(METHODS[name].hyper_parameters, "epochs")])
def test_a_pass_is_rounded_up_to_whole_batches_and_the_help_says_so(tiny_model, tiny_task, name):
    """9 sequences to forget, 4 in a step, make 3 steps; with 2 in a step, as in BalancedSubnet here, 5."""
    method, balanced = METHODS[name], name == "balanced_subnet"
    hp = method.hyper_parameters(epochs=5, batch_size=4, **({"unlearn_share": 0.5} if balanced else {}))
    work = (tiny_model(), tiny_task(9, 9), method.at(hp, 0.3))
    steps = method.passes(*work)[1] if method.passes else method.steps(*work)
    assert steps == 5 * (5 if balanced else 3)
    (help_text,) = [field.metadata["help"] for field in dataclasses.fields(hp) if field.name == "epochs"]
    assert "rounded up to whole batches" in help_text
