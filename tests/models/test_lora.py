"""Low-rank changes: what is trained, merged, saved for peft, and put back."""

from dataclasses import replace

import pytest
import torch
from tiny import new_model, new_task

from tinymem.errors import UserError
from tinymem.localize.registry import METHODS
from tinymem.models.adapter import linear_weights
from tinymem.models.edit import applied
from tinymem.models.lora import low_rank, targeted
from tinymem.training.objective import ObjectiveSettings

QUICK = dict(steps=(1, 3), batch_size=8, lr=1e-2, warm_up=0, dtype="float32", lora_rank=2)
KINDS = ["gpt2", "gpt_neox", "llama"]


def hp_of(name="npo", **changes):
    return METHODS[name].hyper_parameters(**{**QUICK, **changes})


def edits(model, task=None, name="npo", **changes):
    return dict(METHODS[name].run(model, task or new_task(), hp_of(name, **changes)))


def state(model):
    """Names, places and bits of all weights."""
    return [(name, value.data_ptr(), value.tolist()) for name, value in model.state_dict().items()]


def output(model):
    with torch.no_grad():
        return model(new_task().retain).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_edit_is_the_model_with_its_change_merged(kind, dtype):
    """Conv1D of GPT-2 is stored as (in, out)."""
    model = new_model(kind).to(dtype)
    with low_rank(model, 2, 8.0, None, seed=0) as change:
        with torch.no_grad():
            for i, parameter in enumerate(change.parameters):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        trained = output(model)
        with change.taken({"forget_loss": 1.0}) as edit:
            plain = output(model)
            with applied(model, edit):
                merged = output(model)
    assert (trained - plain).abs().max() > 0.1 and edit.notes == {"forget_loss": 1.0}
    near = dict(atol=1e-3, rtol=1e-3) if dtype == torch.float32 else dict(atol=0.5, rtol=0.1)
    torch.testing.assert_close(merged, trained, **near)
    assert set(edit.values) == {f"{name}.weight" for name in targeted(model, None)}
    assert all(value.dtype == dtype for value in edit.values.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_is_that_of_the_definition(kind):
    model = new_model(kind)
    name, *_ = targeted(model, None)
    with low_rank(model, 2, 8.0, None, seed=0) as change:
        first, second = change.parameters[:2]
        assert first.abs().max() > 0 and not second.any()
        with torch.no_grad():
            second.fill_(0.5)
        merged = change.merged()[f"{name}.weight"]
        expected = 4.0 * second @ first
    weight = linear_weights(model)[f"{name}.weight"]
    torch.testing.assert_close(weight.view(merged) - weight.view(), expected.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_in_the_model_after_training_or_an_error(kind):
    model = new_model(kind).train()
    for parameter in linear_weights(model).values():
        parameter.parameter.requires_grad_(False)
    before, modules, own = state(model), [*map(id, model.modules())], set(vars(model))
    wanted = [p.requires_grad for p in model.parameters()]

    def is_as_before():
        assert state(model) == before and set(vars(model)) == own and all(p.grad is None for p in model.parameters())
        assert [*map(id, model.modules())] == modules and all(module.training for module in model.modules())
        assert [p.requires_grad for p in model.parameters()] == wanted

    for _ in METHODS["npo"].run(model, new_task(), hp_of()):
        assert state(model) == before  # while the edit is measured
    is_as_before()
    steps = METHODS["npo"].run(model, new_task(), hp_of())
    next(steps)
    steps.close()
    is_as_before()
    natural = new_task()
    natural = replace(natural, forget=replace(natural.forget, clean=natural.forget.planted))
    with pytest.raises(UserError, match="no clean twin"):
        edits(model, natural, "dpo")
    is_as_before()
    with pytest.raises(ZeroDivisionError), low_rank(model, 2, 1.0, None, 0):
        raise ZeroDivisionError
    is_as_before()


def test_equal_runs_give_equal_bits_and_seeds_differ():
    torch.manual_seed(5)
    one = edits(new_model("gpt_neox"))
    torch.manual_seed(6)  # what else draws numbers makes no difference
    model = new_model("gpt_neox")
    other, seeded = edits(model), edits(model, new_task(seed=1))
    assert all(torch.equal(value, other[3].values[key]) for key, value in one[3].values.items())
    assert any(not torch.equal(value, seeded[3].values[key]) for key, value in one[3].values.items())
    torch.manual_seed(6)
    state = torch.get_rng_state()
    with low_rank(model, 2, 1.0, None, 0):
        pass
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["npo", "ascent_kl", "undial", "rmu", "pdu"])
def test_references_need_no_copy_of_the_model(name, monkeypatch):
    """KL and the others ask for the model before the edit: that is the model without the change."""
    stored = edits(new_model("llama"), new_task(microbatch=4), name)
    model = new_model("llama")
    monkeypatch.setattr("tinymem.training.reference.STORED_ENTRIES", 0)
    monkeypatch.setattr("tinymem.training.reference.copy", None)
    found = edits(model, new_task(microbatch=4), name)
    for key, value in stored[3].values.items():
        torch.testing.assert_close(found[3].values[key], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["npo", "rmu"])
def test_gradient_checkpointing_gives_the_same(name):
    plain = edits(new_model("gpt2"), name=name)
    saving = edits(new_model("gpt2"), new_task(gradient_checkpointing=True), name)
    for key, value in plain[3].values.items():
        torch.testing.assert_close(saving[3].values[key], value)


def test_a_low_rank_change_forgets_too():
    """The loss of forget rows rises under LoRA as it does in full."""
    task = new_task()
    losses = {}
    for rank in (0, 2):
        model = new_model("gpt_neox")
        found = edits(model, task, "gradient_difference", lora_rank=rank, steps=(40,), lr=3e-3 if rank == 0 else 3e-2)
        with applied(model, found[40]):
            losses[rank] = task.mean_loss(model, task.forget.planted)
        losses["before"] = task.mean_loss(model, task.forget.planted)
    assert min(losses[0], losses[2]) > losses["before"] + 0.2


def test_an_adapter_opens_with_peft(tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    for kind in KINDS:
        model, folder = new_model(kind), tmp_path / kind
        model.save_pretrained(folder / "base")
        edit = edits(model)[3]
        edit.adapter.save(folder / "adapter", str(folder / "base"))
        with applied(model, edit):
            expected = output(model)
        found = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
        beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "adapter")
        for opened in (found, beside):
            torch.testing.assert_close(output(opened.eval()), expected, atol=1e-4, rtol=1e-4)


def test_some_layers_alone():
    model = new_model("gpt_neox")
    found = edits(model, lora_targets=("dense_h_to_4h", "1.attention.dense"))[3].values
    assert {key.split(".", 2)[2] for key in found} == {
        "0.mlp.dense_h_to_4h.weight", "1.mlp.dense_h_to_4h.weight", "1.attention.dense.weight"
    }  # fmt: skip


def test_what_cannot_be_is_one_line():
    model = new_model("gpt_neox")
    with pytest.raises(UserError, match="^--lora_targets c_fc: must be one or more of .*dense_h_to_4h[^\n]*$"):
        edits(model, lora_targets=("c_fc",))
    with pytest.raises(
        UserError, match="^--lora_rank 9: must be <= 8, the smaller side of this model's largest linear layer$"
    ):
        edits(model, lora_rank=9)
    for block in model.gpt_neox.layers:  # a model without linear layers
        for name, module in list(block.named_modules()):
            if isinstance(module, torch.nn.Linear):
                block.get_submodule(name.rpartition(".")[0]).register_module(
                    name.rpartition(".")[2], torch.nn.Identity()
                )
    with pytest.raises(UserError, match="^--lora_rank: GPTNeoXForCausalLM has no linear layers[^\n]*$"):
        targeted(model, None)
    for wrong, message in [
        (dict(lora_rank=-1), "--lora_rank -1: must be >= 0"), (dict(lora_alpha=0.0), "--lora_alpha 0"),
        (dict(lora_rank=0, lora_alpha=2.0), "only with --lora_rank"),
        (dict(lora_rank=0, lora_targets=("x",)), "--lora_targets: only with"),
        (dict(update_mask=("durable", "0.1")), "--lora_rank 2: not with --update_mask"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            ObjectiveSettings(**{**QUICK, **wrong})


def test_records_name_the_rank_only_where_there_is_one():
    method = METHODS["npo"]
    assert "lora_rank" not in method.settings(hp_of(lora_rank=0), 3)
    assert method.settings(hp_of(), 3)["lora_rank"] == 2
