"""Progress: a bar on a terminal; elsewhere a line at the start, one a minute and one at the end."""

import re

import pytest
from small import in_process

from tinymem.cli import display as module
from tinymem.cli.display import Display, Meter, spelled
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.localize.watch import Watch


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


class Costly:
    """A loss that says whether somebody read it."""

    def __init__(self):
        self.read = 0

    def __float__(self):
        self.read += 1
        return 2.5


def test_a_line_at_the_start_one_a_minute_and_one_at_the_end(monkeypatch, capsys):
    clock, loss = Clock(monkeypatch), Costly()
    with Display("training", 300) as display:
        for step in range(1, 301):
            clock.now += 1
            display.to(step, 100, f"epoch {1 + step // 100}", loss=loss)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: step 0 of 300"
    assert lines[1] == "training: step 60 of 300, epoch 1, loss 2.5000, 100 tokens/s, 4:00 left"
    assert lines[-1] == "training: step 300 of 300, epoch 4, loss 2.5000, 100 tokens/s, 5:00 in all"
    assert len(lines) == 7 and loss.read == 6  # never between two lines: on a GPU it would wait for the step


def test_a_short_loop_writes_two_lines(monkeypatch, capsys):
    Clock(monkeypatch)
    with Display("planting") as display:
        for _ in range(50):
            display.advance()
    assert capsys.readouterr().err.splitlines() == ["planting: step 0", "planting: step 50, 0:00 in all"]


def test_nothing_to_do_and_an_error_have_no_last_line(monkeypatch, capsys):
    with Display("unlearning", 0, "run"):
        pass
    assert not capsys.readouterr().err
    with pytest.raises(KeyError), Display("training", 5):
        raise KeyError
    assert capsys.readouterr().err.splitlines() == ["training: step 0 of 5"]


def test_a_resumed_loop_counts_its_own_steps_for_the_time_left(monkeypatch):
    clock = Clock(monkeypatch)
    meter = Meter("training", 1000, done=900)
    assert meter.seconds_left is None
    clock.now += 20
    meter.to(910)
    assert meter.seconds_left == 180


def test_the_loop_within_a_run_is_shown_behind_it(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Display("unlearning", 3, "run") as display:
        display.advance(note="obs")
        display.inner = Meter("subnet 0.1", 40)
        clock.now += 61
        display.inner.to(20, 610, loss=1)
        display.refresh()
    assert capsys.readouterr().err.splitlines()[1:] == [
        "unlearning: run 1 of 3, subnet 0.1 step 20 of 40, loss 1.0000, 10 tokens/s, 1:01 left",
        "unlearning: run 1 of 3, obs, 1:01 in all",
    ]


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    loss = Costly()
    with Display("training", 1000) as display:
        for step in range(1, 1001):
            display.to(step, 10, loss=loss)
        display.write("a line")
    shown = capsys.readouterr().err
    assert "1000/1000" in shown and "loss 2.5000" in shown and "a line\n" in shown and "in all" not in shown
    assert loss.read < 20


@pytest.mark.parametrize("seconds, text", [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (100_000, "27:46:40")])
def test_durations(seconds, text):
    assert spelled(seconds) == text


QUICK = {
    "subnet": dict(epochs=2, batch_size=4), "balanced_subnet": dict(epochs=1, batch_size=16), "npo": dict(steps=(2, 3)),
    "slimming": dict(epochs=1, batch_size=8), "greedy": dict(ratio=(1e-4,)),
}  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_methods_that_learn_tell_every_step(memorizing_backdoor, name):
    """The number of steps is that of the plan, and the loss is a number that can be read."""
    task = unlearning_task(memorizing_backdoor.model, memorizing_backdoor.dataset, TaskSettings(max_retain=40))
    told = []
    watched = Watch(lambda step, steps, tokens, losses: told.append((step, steps, tokens, dict(losses))))
    method, model = METHODS[name], memorizing_backdoor.model
    hp = method.resolve(method.hyper_parameters(**QUICK[name]), model.num_parameters())
    object.__setattr__(task, "watch", watched)
    for _ in method.run(model, task, hp):
        pass
    steps = [step for step, *_ in told]
    assert steps and steps == list(range(1, len(steps) + 1))
    if name != "slimming":  # which stops early
        assert {total for _, total, *_ in told} == {len(steps)} == {method.steps(model, task, hp)}
    assert all(
        tokens > 0 and losses and all(abs(float(value)) < 1e9 for value in losses.values())
        for *_, tokens, losses in told
    )


def test_unlearning_without_a_terminal_is_two_lines(memorizing_backdoor, tmp_path, capsys):
    script = "src/localize/localize_memorization.py"
    words = ["--model_path", memorizing_backdoor.checkpoint, "--localization_method", "subnet", "npo", "--epochs", 1]
    words += ["--steps", 2, "--output_dir", tmp_path, "--data_dir", tmp_path / "data", "--no_save_model"]
    in_process(script, *words)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unlearning")]
    assert lines[0] == "unlearning: run 0 of 2" and re.fullmatch(
        r"unlearning: run 2 of 2, npo, \d+:\d\d in all", lines[1]
    )
    assert len(lines) == 2
