"""Progress: a bar on a terminal; elsewhere a line at the start, one a minute and one at the end."""

import copy
import json
import re

import pytest
from small import in_process

from tinymem.cli import display as module
from tinymem.cli.display import Display, Meter, clock_time
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.localize.watch import Watch
from tinymem.metrics.evaluate import measure
from tinymem.metrics.probe import Probe
from tinymem.metrics.reference import References


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


def test_a_quiet_loop_says_nothing_unless_it_is_long(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Display("measuring", quiet=True) as display:
        for name in ("unedited on generation", "unedited on test text"):
            display.rows(name, 0, 400)
            for done in (100, 200, 300, 400):
                clock.now += 10
                display.rows(name, done, 400)
    assert capsys.readouterr().err == "measuring: unedited on test text row 200 of 400, 0:20 left\n"
    with Display("measuring", quiet=True) as display:
        display.rows("unedited on generation", 0, 5)
        clock.now += 59
        display.rows("unedited on generation", 5, 5)
    assert not capsys.readouterr().err


def test_a_quiet_loop_has_a_bar_on_a_terminal_that_comes_late(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    clock = Clock(monkeypatch)
    with Display("measuring", quiet=True) as display:
        display.rows("unedited on generation", 0, 400)
        assert not capsys.readouterr().err
        clock.now += 2
        display.rows("unedited on generation", 100, 400)
        assert "measuring unedited on generation" in (shown := capsys.readouterr().err) and "100/400" in shown
    assert capsys.readouterr().err.endswith("\r")  # and goes


@pytest.mark.parametrize("seconds, text", [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (100_000, "27:46:40")])
def test_durations(seconds, text):
    assert clock_time(seconds) == text


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


def test_measuring_tells_every_row_of_every_pass(memorizing_backdoor):
    """With a twin, generation and the model before the edit; what is measured is the same."""
    model, dataset = memorizing_backdoor.model, memorizing_backdoor.dataset
    metrics = ("percent_memorized", "percent_near_verbatim", "perplexity", "auc_twin", "kl")
    found, told = [], []
    for more in ({"on_rows": lambda *rows: told.append(rows)}, {}):
        references = References(dataset, dataset.sequences[:40], lambda: copy.deepcopy(model))
        references.prepare(model, 16)
        found.append(measure(model, dataset, 16, metrics=metrics, references=references, **more).row)
    passes = passes_of(told)
    assert found[0] == found[1]
    assert {name for name, _ in passes} == {
        "planted sequences", "generation", "test text", "drift on retain text", "drift on unseen text",
        "twin on planted sequences",
    }  # fmt: skip
    assert all(rows[0] == 0 and rows == sorted(rows) and len(rows) > 1 for _, rows in passes)


def passes_of(told) -> list[tuple[str, list[int]]]:
    """The passes in what was told: their names and rows, each to its end."""
    passes, open_pass = [], []
    for name, done, total in told:
        open_pass.append(done)
        if done == total:
            passes.append((name, open_pass))
            open_pass = []
    assert not open_pass
    return passes


def test_long_measuring_is_shown_once_a_minute_and_logged(memorizing_backdoor, tmp_path, monkeypatch, capsys):
    """Every batch takes 50 seconds of a clock of the test."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr("tinymem.cli.log.time.monotonic", lambda: clock.now)
    run = Probe._window

    def slow(*arguments):
        clock.now += 50
        return run(*arguments)

    monkeypatch.setattr(Probe, "_window", slow)
    log = tmp_path / "log.jsonl"
    words = ["--model_path", memorizing_backdoor.checkpoint, "--localization_method", "durable", "--ratio", 0.1]
    words += ["--output_dir", tmp_path, "--data_dir", tmp_path / "data", "--no_save_model", "--microbatch", 16]
    in_process("src/localize/localize_memorization.py", *words, "--log_jsonl", log)
    lines = [line for line in capsys.readouterr().err.splitlines() if " on planted sequences row " in line]
    assert any(
        re.fullmatch(r"measuring: unedited on planted sequences row \d+ of \d+(, \d+:\d\d left)?", x) for x in lines
    )
    assert any(x.startswith("unlearning: run 0 of 1, durable 0.1 on planted sequences row ") for x in lines)
    logged = [line for line in map(json.loads, log.read_text().splitlines()) if "measuring" in line]
    assert {line["what"] for line in logged} == {"unedited", "durable 0.1"}
    assert {line["run"] for line in logged} == {path.stem for path in (tmp_path / "records").glob("*.json")}
    assert all(0 < line["row"] <= line["rows"] and line["measuring"] == "planted sequences" for line in logged)


def test_slow_steps_have_their_true_speed_and_rest(memorizing_backdoor, tmp_path, monkeypatch, capsys):
    """Every step takes 25 seconds of a clock of the test; nothing is said of the first one's, which nobody timed."""
    clock, tell, told = Clock(monkeypatch), Watch.step, []
    monkeypatch.setattr("tinymem.cli.log.time.monotonic", lambda: clock.now)

    def slow(watch, step, steps):
        clock.now += 25
        told.append(watch._tokens)
        tell(watch, step, steps)

    monkeypatch.setattr(Watch, "step", slow)
    words = ["--model_path", memorizing_backdoor.checkpoint, "--localization_method", "npo", "--steps", 9]
    words += ["--output_dir", tmp_path, "--data_dir", tmp_path / "data", "--no_save_model"]
    in_process("src/localize/localize_memorization.py", *words, "--log_jsonl", tmp_path / "log.jsonl")
    lines = re.findall(r"npo step (\d) of 9, .*?([\d,]+) tokens/s, (\d):(\d\d) left", capsys.readouterr().err)
    speeds = {step: round(told[step - 1] / 25) for step in range(1, 10)}
    assert len(lines) == 3
    for step, speed, minutes, seconds in lines:
        assert 60 * int(minutes) + int(seconds) == 25 * (9 - int(step))
        assert int(speed.replace(",", "")) == pytest.approx(speeds[int(step)], rel=0.05)
    logged = [
        line for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if "forget_loss" in line
    ]
    assert [line.get("tokens_per_second") for line in logged] == [None, *(speeds[step] for step in range(2, 10))]


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
