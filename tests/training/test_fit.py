"""One loop: objectives, interruptions and losses that do not stay finite."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from sides import FORGET, OBJECTIVES, RETAIN, fresh, gradient_difference, npo, rmu, undial, weights

from tinymem.errors import UserError
from tinymem.regularizers.protocol import Regularizer
from tinymem.training.checkpoint import Progress, read_progress
from tinymem.training.fit import Stopped, fit, warmed_up
from tinymem.training.objective import ObjectiveSettings, rows_of_step, train_objective
from tinymem.training.processes import Processes
from tinymem.training.step import Side, rows_per_side

SETTINGS = ObjectiveSettings(steps=(2, 5, 9), batch_size=8, lr=3e-3, warm_up=3, dtype="float32")


def train(model, loss=gradient_difference, settings=SETTINGS, **options):
    return train_objective(model, loss, FORGET, RETAIN, settings, **options)


def trained(loss=gradient_difference, settings=SETTINGS, **options):
    """Steps -> weights."""
    model = fresh()
    return {steps: weights(model) for steps, _ in train(model, loss, settings, **options)}


def mean_loss(model, side: Side) -> float:
    with torch.no_grad():
        return (side.row_sums(side.losses(model)).sum() / side.mask.sum()).item()


def test_gradient_difference_forgets_and_retains():
    model, losses = fresh(2), []
    memorize = lambda model, reference, forget, retain: (forget.losses(model), retain.losses(model))  # noqa: E731
    for _ in train(model, memorize, replace(SETTINGS, steps=(150,), batch_size=26, forget_share=6 / 26)):
        pass
    before = mean_loss(model, FORGET), mean_loss(model, RETAIN)
    assert max(before) < 0.5
    settings = replace(SETTINGS, steps=(40,), batch_size=26, forget_share=6 / 26, lr=1e-3)
    for _ in train(model, settings=settings, on_step=lambda progress, *both: losses.append(both)):
        pass
    after = mean_loss(model, FORGET), mean_loss(model, RETAIN)
    assert after[0] > before[0] + 3 and abs(after[1] - before[1]) < 0.2
    assert len(losses) == 40 and all(forget < 0 < retain for forget, retain in losses)  # both parts are told


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_every_strength_is_that_of_a_run_of_its_own(loss):
    together = trained(loss)
    assert list(together) == [2, 5, 9] and not torch.equal(together[2], together[9])
    for steps, expected in together.items():
        assert torch.equal(trained(loss, replace(SETTINGS, steps=(steps,)))[steps], expected)


def test_seed_and_checkpointing():
    plain = trained(npo)[9]
    assert not torch.equal(trained(npo, seed=1)[9], plain)
    torch.testing.assert_close(trained(npo, gradient_checkpointing=True)[9], plain)
    torch.testing.assert_close(trained(rmu, gradient_checkpointing=True)[9], trained(rmu)[9])


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("loss", [npo, undial, rmu])
def test_interrupted_anywhere_and_resumed_gives_the_same_bits(loss, killed, tmp_path, monkeypatch):
    """Asked to stop, it saves; killed within a step, it resumes from what was saved after the step before."""
    monkeypatch.setattr("tinymem.training.fit.SAVE_SECONDS", -1.0 if killed else 1e9)
    straight, state, found, moments, done = trained(loss), tmp_path / "state", {}, random.Random(0), []

    def session(length: int | None) -> None:
        """Steps that are found already are not asked for again."""
        steps, model = [], fresh()

        def on_step(progress, *losses):
            steps.append(progress.epoch)
            if killed and len(steps) == length:
                raise Killed

        missing = replace(SETTINGS, steps=tuple(s for s in SETTINGS.steps if s not in found))
        stop = lambda: not killed and len(steps) == length  # noqa: E731
        try:
            for number, _ in train(model, loss, missing, state=state, on_step=on_step, should_stop=stop):
                found[number] = weights(model)
        finally:
            done.append(steps)

    for length in (moments.randint(2, 3), 3, 2):
        with pytest.raises((Stopped, Killed)):
            session(length)
    assert read_progress(state).epoch > 2 and 9 not in found
    session(None)
    assert [steps[0] for steps in done[1:]] == [steps[-1] + (not killed) for steps in done[:-1]]
    assert found.keys() == straight.keys() and all(torch.equal(found[n], straight[n]) for n in found)


def test_a_state_past_the_first_step_asked_for_is_left_alone(tmp_path):
    state, steps = tmp_path / "state", []
    calls = dict(on_step=lambda progress, *_: steps.append(1), should_stop=lambda: len(steps) == 7)
    with pytest.raises(Stopped):
        trained(state=state, **calls)
    again = trained(state=state)
    assert all(torch.equal(again[n], expected) for n, expected in trained().items())


def test_what_collects_gradients_and_the_mode_are_put_back():
    model = fresh().train()
    model.transformer.wpe.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    for _ in train(model, settings=replace(SETTINGS, trained="all_but_embeddings", weight_decay=0.1)):
        assert not model.training
    assert model.training and model.transformer.wte.weight.requires_grad
    assert not model.transformer.wpe.weight.requires_grad and model.transformer.wte.weight.grad is None
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"}


def test_some_entries_alone_are_changed_by_a_hook():
    model = fresh()
    masks = [torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) < 0.3 for p in model.parameters()]

    def keep_the_rest():
        for parameter, mask in zip(model.parameters(), masks, strict=True):
            parameter.grad.mul_(mask)

    before = weights(model)
    for _ in train(model, regularizers=[Regularizer(after_backward=keep_the_rest)]):
        pass
    changed = weights(model) != before
    allowed = torch.cat([mask.flatten() for mask in masks])
    assert changed[allowed].float().mean() > 0.9 and not changed[~allowed].any()


def test_without_retain_set_all_rows_are_forget_rows():
    model, sizes = fresh(), []

    def ascent(model, reference, forget, retain):
        assert retain is None
        sizes.append(len(forget))
        return -forget.losses(model)

    before = mean_loss(model, FORGET)
    assert [n for n, _ in train_objective(model, ascent, FORGET, None, SETTINGS)] == [2, 5, 9]
    assert set(sizes) == {6} and mean_loss(model, FORGET) > before


def test_a_reference_asked_for_too_late_is_refused():
    calls = []

    def late(model, reference, forget, retain):
        calls.append(1)
        return forget.losses(model) if len(calls) < 4 else forget.row_means(forget.losses(reference.model))

    with pytest.raises(RuntimeError, match="in every call"):
        trained(late)


def test_a_loss_that_is_not_finite_names_step_and_flag_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    monkeypatch.setattr("tinymem.training.fit.SAVE_SECONDS", -1.0)  # after every step
    state, calls = tmp_path / "state", []

    def breaks(model, reference, forget, retain):
        calls.append(1)
        return (forget.losses(model) * (torch.nan if len(calls) == 5 else 1), retain.losses(model))

    with pytest.raises(UserError, match=r"--my_lr 0.003: the loss is not finite in step 4; use a lower --my_lr"):
        trained(breaks, state=state, lr_flag="--my_lr")
    progress = read_progress(state)
    assert (progress.epoch, progress.step) == (2, 1)  # three steps are done
    kept = trained(lambda model, reference, forget, retain: (forget.losses(model), retain.losses(model)))
    resumed = trained(
        lambda model, reference, forget, retain: (forget.losses(model), retain.losses(model)),
        replace(SETTINGS, steps=(5, 9)),
        state=state,
    )
    assert torch.equal(resumed[9], kept[9])


def test_a_loss_that_is_not_finite_at_first_is_no_fault_of_the_rate():
    with pytest.raises(UserError, match="0.003: the loss is not finite in the first step: the model may be damaged$"):
        trained(lambda model, reference, forget, retain: (forget.losses(model) * torch.nan, retain.losses(model)))


def test_weights_that_are_not_finite_are_neither_saved_nor_handed_out():
    """The loss of the last step was finite; what that step did to the weights is not."""
    model, saved = fresh(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(number):
        if number == 1:
            model.transformer.wte.weight.data[0, 0] = torch.inf
        return [1.0]

    epochs = fit(
        model, optimizer, step, lambda epoch: [epoch], 2, Progress(),
        rate=lambda progress: 0.1, save=lambda: saved.append(1), should_stop=lambda: False,
    )  # fmt: skip
    assert next(epochs) == 1.0
    with pytest.raises(UserError, match="--lr 0.1: a weight is not finite in step 2; use a lower --lr"):
        next(epochs)
    assert not saved


def test_a_weight_that_is_not_finite_in_one_process_ends_the_training_in_all():
    """Each sees its own part of weights that are divided among them."""

    class Beside(Processes):
        def any(self, flag):
            return True

    loss = lambda model, reference, forget, retain: (forget.losses(model), retain.losses(model))  # noqa: E731
    with pytest.raises(UserError, match="--lr 0.003: a weight is not finite in step 1"):
        next(train_objective(fresh(), loss, FORGET, RETAIN, SETTINGS, processes=Beside()))


def test_saving_takes_a_share_of_the_time_and_measuring_is_no_work_to_save(monkeypatch):
    model, clock, saves = torch.nn.Linear(1, 1), [0.0], []
    optimizer = torch.optim.AdamW(model.parameters())
    monkeypatch.setattr("tinymem.training.fit.time.monotonic", lambda: clock[0])

    def step(number):
        clock[0] += 10.0
        return [1.0]

    def save():
        saves.append((progress.epoch, progress.step))
        clock[0] += 6.0 if len(saves) < 3 else 1.5

    progress = Progress()
    batches, rate = lambda epoch: range(30), lambda progress: 0.1
    for _ in fit(model, optimizer, step, batches, 2, progress, rate=rate, save=save):
        clock[0] += 1e4  # the caller measures
    # After 70 seconds; twice the cheap 3 seconds: every 130 seconds; a cheap one: every 70 again.
    assert saves == [(0, 7), (0, 20), (1, 3), (1, 10), (1, 17), (1, 24)]


def test_rows_of_steps_go_through_the_set_again_and_again():
    drawn = torch.cat([rows_of_step(7, 3, seed=4, step=step) for step in range(14)])
    passes = drawn.split(7)
    assert len(passes) == 6 and all(sorted(each.tolist()) == list(range(7)) for each in passes)
    assert not passes[0].equal(passes[1])
    assert sorted(rows_of_step(7, 99, seed=0, step=2).tolist()) == list(range(7))  # a pass a step
    with pytest.raises(ValueError, match="no sequences"):
        rows_of_step(0, 3, 0, 0)


def test_shares_and_warm_up():
    assert [rows_per_side(8, share) for share in (0.5, 0.01, 0.99)] == [(4, 4), (1, 7), (7, 1)]
    assert [warmed_up(1.0, done, 4) for done in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmed_up(1.0, 0, 0) == 1.0


@pytest.mark.parametrize(
    "wrong", [dict(steps=(5, 0)), dict(batch_size=1), dict(forget_share=1.0), dict(trained="none")]
)
def test_settings_that_are_not_allowed(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
        ObjectiveSettings(**wrong)
