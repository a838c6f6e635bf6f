"""Objectives as methods: what they change and leave alone, what records keep, and inputs that cannot work."""

import itertools
import json
import re
from dataclasses import fields, replace

import pytest
import torch
from small import in_process
from tiny import new_model, new_task

from tinymem.attacks.registry import ATTACKS
from tinymem.errors import NotFinite, UserError
from tinymem.localize.learning import check_scores, check_steps
from tinymem.localize.objective import pdu, repselect, rmu
from tinymem.localize.objective_method import sides
from tinymem.localize.registry import GROUPS, METHODS, STUDY, find_localizer, find_methods
from tinymem.localize.watch import Watch
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Weights, applied
from tinymem.models.known_configs import known_config
from tinymem.planning.memory import shape_of
from tinymem.planning.plan import Sizes, plan
from tinymem.records.table import load_records
from tinymem.training.objective import loss_flags
from tinymem.training.plant import PlantSettings
from tinymem.training.reference import Reference
from tinymem.training.settings import TrainingSettings
from tinymem.training.step import backward

LOSSES = [name for name in GROUPS["objective"] if name != "repselect"]
UNLEARN = "src/localize/localize_memorization.py"
QUICK = dict(steps=(1, 3), batch_size=8, lr=1e-3, warm_up=0, dtype="float32")


def hp_of(name, **changes):
    return METHODS[name].hyper_parameters(**{**QUICK, **changes})


def edits(name, model, task, hp):
    return dict(METHODS[name].run(model, task, hp))


@pytest.mark.parametrize("name", LOSSES)
def test_every_objective_trains_and_leaves_the_model_alone(name, snapshot):
    model, task = new_model("gpt2").double(), new_task(microbatch=3)  # Adam makes much of rounded zeros
    before = snapshot(model)
    found = edits(name, model, task, hp_of(name))
    assert list(found) == [1, 3] and snapshot(model) == before
    parts = {"forget_loss", *(["retain_loss"] if hp_of(name).retain_weight else [])}
    assert all(set(edit.notes) == parts for edit in found.values())
    assert any(not torch.equal(found[1].values[key], found[3].values[key]) for key in found[1].values)
    whole = edits(name, model, replace(task, microbatch=64), hp_of(name))
    for key, value in found[3].values.items():
        torch.testing.assert_close(whole[3].values[key], value, atol=1e-6, rtol=1e-6)


def test_what_counts_of_forget_and_retain_rows():
    """Forget rows: what is behind the prompt, no pads. Retain rows: all, pads too where they count in training."""
    task = new_task(pad=13)
    forget, retain = sides(task, "continuation")
    place = torch.arange(1, task.retain.shape[1])
    expected = (task.forget.planted[:, 1:] != 13) & (place >= task.forget.prompt_end[:, None])
    assert torch.equal(forget.mask, expected) and expected.any() and retain.mask.all()
    assert torch.equal(forget.twin.tokens, task.forget.clean)
    assert torch.equal(sides(task, "all")[0].mask, task.forget.planted[:, 1:] != 13)
    text = replace(task, ignored_token=5)
    assert not sides(text, "all")[1].mask[task.retain[:, 1:] == 5].any()
    parts = forget.select(torch.tensor([3, 1, 2])).split(2)
    assert torch.equal(parts[0].twin.tokens, task.forget.clean[[3, 1]]) and parts[1].twin.whole is forget.twin


def rmu_case():
    model = new_model("gpt2").double()
    forget, retain = sides(new_task(4, 6), "continuation")
    reference, hp = Reference(model, 64, "float32"), rmu.HyperParameters(layer=1, scale=2.0)
    chosen = [whole.select(torch.arange(len(whole))) for whole in (forget, retain)]
    loss = lambda model, forget, retain: rmu.loss(hp, model, reference, forget, retain)  # noqa: E731
    return model, chosen, loss, reference


def test_rmu_by_hand_and_by_finite_differences():
    model, (forget, retain), loss, reference = rmu_case()
    states = model(forget.tokens, output_hidden_states=True).hidden_states  # the last one has been normalized
    torch.testing.assert_close(model.transformer.ln_f(forget.activations(model, 1)), states[-1][:, :-1])
    with torch.no_grad():
        values, kept = loss(model, forget, retain)
    assert not kept.any()
    activations = forget.activations(model, 1).detach()
    direction = torch.rand(8, generator=torch.Generator().manual_seed(0))
    length = 2 * activations[forget.mask].norm(dim=-1).median()
    target = length * (direction / direction.norm()).double()
    torch.testing.assert_close(values, ((activations - target) ** 2).mean(-1))
    reference.begin_edit()
    weight = find_mlps(model)[0].inputs[0].parameter
    with torch.no_grad():
        weight[0, 0] += 0.3  # now retain rows have moved, too
    backward(model, loss, [forget, retain], 64, "float32", (), (0.5, 2.0))
    slope, step = weight.grad[0, 0].item(), 1e-4

    def total(change):
        with torch.no_grad():
            weight[0, 0] += change
            values = loss(model, forget, retain)
            weight[0, 0] -= change
        return sum(w * v[s.mask].mean().item() for w, v, s in zip((0.5, 2.0), values, (forget, retain)))

    assert (total(step) - total(-step)) / (2 * step) == pytest.approx(slope, rel=1e-4) and slope


def test_the_direction_of_rmu_is_drawn_by_the_seed_of_the_run():
    """By the loss of a first step whose batch holds all rows, so that their order does not show."""
    model, task = new_model("gpt2"), new_task(4, 4)
    forget, _ = sides(task, "continuation")
    with torch.no_grad():
        activations = forget.activations(model, 1)
    for seed in (0, 3):
        edit = edits("rmu", model, replace(task, seed=seed), hp_of("rmu", steps=(1,), layer=1, scale=2.0))[1]
        drawn = torch.rand(8, generator=torch.Generator().manual_seed(seed))
        target = 2 * activations[forget.mask].norm(dim=-1).median() * drawn / drawn.norm()
        expected = ((activations - target) ** 2).mean(-1)[forget.mask].mean().item()
        assert edit.notes["forget_loss"] == pytest.approx(expected, rel=1e-4)


def test_rmu_needs_a_block_that_exists():
    with pytest.raises(UserError, match="--layer 2: must be below 2"):
        edits("rmu", new_model("gpt2"), new_task(), hp_of("rmu", layer=2))


def test_pdu_raises_its_weight_while_the_constraint_is_violated():
    reference, hp = Reference(new_model("gpt2"), 4, "float32"), pdu.HyperParameters(dual_warm_up=2, dual_step=10.0)
    reference.state["dual"] = torch.tensor(50.0)
    weights = []
    for steps, violation in ((1, 1.0), (2, 1.0), (3, 0.4), (4, -0.1), (5, -99.0)):
        pdu.after_step(hp, reference, steps, [0.0, violation])
        weights.append(pdu.weights(hp, reference)[1])
    assert weights == pytest.approx([50.0, 50.0, 54.0, 53.0, 0.0])


def test_pdu_keeps_its_constraint_where_ascent_does_not():
    model, task = new_model("gpt2"), new_task()
    settings = dict(steps=(60,), lr=3e-3, forget_weight=5.0)
    free = edits("gradient_difference", model, task, hp_of("gradient_difference", **settings))[60]
    bound = edits("pdu", model, task, hp_of("pdu", slack=0.1, dual_warm_up=0, **settings))[60]
    before, losses = task.mean_loss(model, task.retain), []
    for edit in (free, bound):
        with applied(model, edit):
            losses.append(task.mean_loss(model, task.retain) - before)
    assert losses[1] < 0.1 < losses[0]
    assert bound.notes["retain_loss"] < 0 < edits("pdu", model, task, hp_of("pdu", steps=(1,)))[1].notes["forget_loss"]


@pytest.mark.parametrize("directions", ["retain", "forget"])
def test_repselect_spends_its_budget_and_no_more(directions):
    model, task = new_model("gpt2"), new_task(microbatch=4)
    hp = repselect.HyperParameters(kl_budget=(0.01, 0.05), directions=directions, dropped=2, dtype="float32")
    with torch.no_grad():
        before = model(task.retain).logits[:, :-1].log_softmax(-1)
    forget_losses = [task.mean_loss(model, task.forget.planted)]
    for budget, edit in METHODS["repselect"].run(model, task, hp):
        with applied(model, edit), torch.no_grad():
            after = model(task.retain).logits[:, :-1].log_softmax(-1)
            forget_losses.append(task.mean_loss(model, task.forget.planted))
        spent = (before.exp() * (before - after)).sum(-1).mean().item()
        assert 0.9 * budget < spent <= budget * (1 + 1e-3)
        assert edit.notes["kl_reached"] == pytest.approx(spent, rel=1e-2)
    assert forget_losses == sorted(forget_losses)


def test_shared_directions_are_removed_on_both_sides():
    generator = torch.Generator().manual_seed(0)
    gradient, shared = (torch.randn(5, 7, generator=generator) for _ in range(2))
    left, _, right = torch.linalg.svd(shared, full_matrices=False)
    kept = repselect.without_shared(gradient, shared, 2)
    assert (left[:, :2].T @ kept).abs().max() < 1e-5 and (kept @ right[:2].T).abs().max() < 1e-5
    torch.testing.assert_close(left[:, 2:].T @ kept @ right[2:].T, left[:, 2:].T @ gradient @ right[2:].T)
    torch.testing.assert_close(repselect.without_shared(gradient, gradient, 0), gradient)
    with pytest.raises(UserError, match="--dropped 5: must be < 5"):  # all that would be left is rounding
        repselect.without_shared(gradient, shared, 5)


def test_repselect_says_what_it_did_not_spend_and_needs_a_direction(caplog):
    model, task = new_model("gpt2"), new_task()
    hp = repselect.HyperParameters(kl_budget=(0.1,), max_steps=1, lr=1e-6, dropped=2, dtype="float32")
    ((_, edit),) = METHODS["repselect"].run(model, task, hp)
    assert edit.notes["kl_reached"] < 0.05 and "repselect: found no step nearer to the budget" in caplog.text
    nothing = replace(task, forget=replace(task.forget, prompt_end=torch.full_like(task.forget.prompt_end, 12)))
    with pytest.raises(NotFinite, match="no direction to move along"):
        list(METHODS["repselect"].run(model, nothing, hp))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("name, localizer, ratio", [
    ("npo", "durable", "0.1"), ("undial", "act", "0.25"), ("rmu", "durable_agg", "0.05"), ("dpo", "random", "0.2"),
])  # fmt: skip
def test_entries_outside_the_update_mask_keep_every_bit(architecture, name, localizer, ratio):
    model, task = new_model(architecture), new_task()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    method, share = find_localizer(localizer, ratio)
    ((_, edit),) = method.run(model, task, method.hyper_parameters(ratio=(share,)))
    allowed = {key: torch.zeros_like(p, dtype=torch.bool) for key, p in before.items()}
    with applied(model, Weights({key: torch.ones_like(p) for key, p in before.items()})), applied(model, edit):
        allowed |= {key: p.detach() == 0 for key, p in model.named_parameters() if key in edit.masks}
    found = edits(name, model, task, hp_of(name, update_mask=(localizer, ratio)))[3].values
    changed = {key: found[key] != before[key] for key in before}
    assert any(mask.any() for mask in changed.values())
    assert all(not (changed[key] & ~allowed[key]).any() for key in before)


def test_the_update_mask_is_part_of_a_run_and_only_where_there_is_one():
    method = METHODS["npo"]
    assert "update_mask" not in method.settings(hp_of("npo"), 3)
    masked = method.settings(hp_of("npo", update_mask=("durable", "0.1")), 3)
    assert masked["update_mask"] == ("durable", "0.1") and masked["steps"] == 3


@pytest.mark.parametrize("localizer, steps", [("durable", False), ("slimming", True)])
def test_what_finds_a_mask_is_told_under_its_own_name(localizer, steps):
    told = []
    watch = Watch(lambda *what: told.append((watch.method, what[0], {*what[3]})), method="npo")
    edits("npo", new_model("gpt2"), replace(new_task(), watch=watch), hp_of("npo", update_mask=(localizer, "0.3")))
    assert [what for what in told if what[0] == "npo"] == [
        ("npo", n, {"forget_loss", "retain_loss"}) for n in (1, 2, 3)
    ]
    assert {name for name, *_ in told[:-3]} == ({localizer} if steps else set())


@pytest.mark.parametrize("words, message", [
    (("durable",), "must be a method and a ratio"),
    (("magic", "0.1"), "--update_mask magic: must be one of zero_out"),
    (("npo", "0.1"), "--update_mask npo: must be one of zero_out"),
    (("durable", "1.5"), "--update_mask durable 1.5: the ratio must be a number in"),
    (("durable", "much"), "--update_mask durable much: the ratio"),
    (("durable", "0.0000001"), "--update_mask durable 0.0000001: the method finds no weight"),
])  # fmt: skip
def test_update_masks_that_cannot_be(words, message):
    with pytest.raises(UserError, match=message):
        edits("npo", new_model("gpt2"), new_task(), hp_of("npo", update_mask=words))


@pytest.mark.parametrize(
    "name, changes", [("npo", {"update_mask": ("durable", "0.1")}), ("repselect", {}), ("rmu", {})]
)
def test_checks_of_values_do_not_stop_a_plan(name, changes):
    """A plan runs on fake tensors, whose bools are all False: no check may take them for zeros."""
    method, shape = METHODS[name], shape_of(known_config("pythia-70m"), torch.float32)
    sizes = Sizes(forget=8, retain=16, length=20, prompt=8, microbatch=4)
    assert plan(method, shape, sizes, method.hyper_parameters(**changes)).beside > 0


def test_no_weight_decay_outside_a_mask():
    with pytest.raises(UserError, match="--weight_decay 0.1: must be 0 with --update_mask"):
        hp_of("npo", update_mask=("durable", "0.1"), weight_decay=0.1)


@pytest.mark.parametrize("name, changes, message", [
    ("undial", {"retain_loss": "kl"}, "--retain_loss kl: only with a --retain_weight above 0"),
    ("undial", {"forget_share": 0.1}, "--forget_share 0.1: only with a --retain_weight above 0"),
    ("npo", {"trained": "all_but_embeddings", "lora_rank": 2}, "--trained all_but_embeddings: not with --lora_rank"),
    ("npo", {"trained": "all_but_embeddings", "update_mask": ("durable", "0.1")}, "not with --update_mask"),
])  # fmt: skip
def test_what_would_have_no_effect_is_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        hp_of(name, **changes)


def test_only_what_can_do_without_a_retain_set_is_told_so():
    alone = replace(new_task(), retain=new_task().retain[:0])
    for name, said in (("npo", True), ("pdu", False)):
        with pytest.raises(UserError) as error:
            edits(name, new_model("gpt2"), alone, hp_of(name))
        assert ("--retain_weight 0" in str(error.value)) == said


def test_sets_that_an_objective_needs():
    model, task = new_model("gpt2"), new_task()
    natural = replace(task, forget=replace(task.forget, clean=task.forget.planted))
    with pytest.raises(UserError, match="^--localization_method dpo: these sequences have no clean twin [^\n]*$"):
        edits("dpo", model, natural, hp_of("dpo"))
    alone = replace(task, retain=task.retain[:0])
    for name in LOSSES:
        if hp_of(name).retain_weight:
            with pytest.raises(UserError, match=f"^--localization_method {name}: needs a retain set[^\n]*$"):
                edits(name, model, alone, hp_of(name))
        else:
            assert list(edits(name, model, alone, hp_of(name))) == [1, 3]
    assert list(edits("npo", model, alone, hp_of("npo", retain_weight=0.0))) == [1, 3]
    with pytest.raises(UserError, match="repselect: needs a retain set"):
        list(METHODS["repselect"].run(model, alone, repselect.HyperParameters()))


def test_a_loss_that_stops_being_finite_names_the_step_and_keeps_what_was_found(monkeypatch, snapshot):
    model, calls, module = new_model("gpt2"), itertools.count(), METHODS["npo"].module
    before, real = snapshot(model), module.loss
    monkeypatch.setattr(module, "loss", lambda *a: real(*a)[0] * (torch.nan if next(calls) == 3 else 1.0))
    steps = METHODS["npo"].run(model, new_task(), hp_of("npo", steps=(1, 2, 9)))
    assert [next(steps)[0], next(steps)[0]] == [1, 2]
    with pytest.raises(
        NotFinite, match="^--lr 0.001: the loss is not finite in step 3; use a lower --lr, or change --beta$"
    ):
        next(steps)
    assert snapshot(model) == before


def test_names_of_groups():
    assert [m.name for m in find_methods(["study"])] == list(STUDY) and len(STUDY) == 11
    assert [m.name for m in find_methods(["all"])] == list(METHODS)
    found = find_methods(["npo", "neuron", "objective"])
    assert [m.name for m in found][:2] == ["npo", "zero_out"] and len(found) == 5 + len(GROUPS["objective"])
    with pytest.raises(UserError, match="--methods neurons: must be one of zero_out.*objective.*all, or a file"):
        find_methods(["neurons"])


def test_the_script_records_both_losses_and_refuses_bad_input(memorizing_backdoor, tmp_path, capsys):
    place = ["--model_path", memorizing_backdoor.checkpoint, "--output_dir", tmp_path, "--data_dir", tmp_path / "data"]
    words = ["--localization_method", "npo", "undial", "--steps", 1, 2, "--batch_size", 8, "--no_save_model"]
    in_process(UNLEARN, *place, *words, "--update_mask", "durable", 0.1)
    found = [record for record in load_records(tmp_path) if record["kind"] == "unlearn"]
    assert len(found) == 4 and all(record["method"]["update_mask"] == ["durable", "0.1"] for record in found)
    for record in found:
        results = record["results"]
        assert results["forget_loss"] >= 0 and ("retain_loss" in results) == (record["method"]["name"] == "npo")
        assert 0 < results["percent_changed"] < 10 and json.dumps(results)
    capsys.readouterr()
    for flags, message in ((["--beta", 0], "--beta 0"), (["--update_mask", "magic", 0.1], "--update_mask magic")):
        with pytest.raises(SystemExit) as stopped:
            in_process(UNLEARN, *place, "--localization_method", "npo", *flags)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1, error


@pytest.mark.parametrize("name", ["kfade", "ssd"])
def test_curvature_edits_that_need_a_retain_set_say_so(name):
    alone = new_task(forget=2, retain=0)
    method = METHODS[name]
    with pytest.raises(UserError, match=f"^--localization_method {name}: needs a retain set[^\n]*$"):
        next(method.run(new_model("gpt2"), alone, method.hyper_parameters()))


def test_every_learning_rate_and_weight_decay_has_a_bound():
    """Beyond float32 Adam itself fails with an error of torch."""
    parts = [each.hyper_parameters for each in (*METHODS.values(), *ATTACKS.values())] + [
        TrainingSettings,
        PlantSettings,
    ]
    found = [(cls, f) for cls in parts for f in fields(cls) if re.fullmatch(r"(\w+_)?lrs?|weight_decay|l2_reg", f.name)]
    assert len(found) > 35
    for cls, field in found:
        values = (1e300,) if isinstance(field.default, tuple) else 1e300
        with pytest.raises(UserError, match=rf"^--{field.name} 1e\+300: must be in [(\[]0.0, 1000.0\]$"):
            cls(**{field.name: values})


def test_advice_names_what_may_be_the_cause():
    hp = METHODS["npo"].hyper_parameters(retain_weight=5.0)
    assert loss_flags(hp) == ["--beta", "--retain_weight"]
    assert loss_flags(METHODS["gradient_ascent"].hyper_parameters()) == []
    nan, model, half = [torch.tensor([torch.nan])], torch.nn.Module(), torch.nn.Module()
    model.dtype, half.dtype = torch.float32, torch.float16
    with pytest.raises(NotFinite, match="numbers$"):  # a ranking has no learning rate, float32 is wide enough
        check_scores(nan, model, METHODS["activations"].hyper_parameters())
    with pytest.raises(NotFinite, match="numbers; --dtype float32 or bfloat16 may help$"):
        check_scores(nan, half, METHODS["activations"].hyper_parameters())
    with pytest.raises(NotFinite, match="a lower --lr, --weight_decay may help$"):
        check_scores(nan, model, METHODS["subnet"].hyper_parameters())
    with pytest.raises(NotFinite, match="none of its 3 steps .* a lower --lr, --lambda_l1 or --dtype"):
        check_steps(0, 3, half, METHODS["slimming"].hyper_parameters())
