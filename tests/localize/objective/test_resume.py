"""Objectives that are killed or stopped resume their training, and end with the same bytes."""

import signal
from contextlib import nullcontext
from dataclasses import replace

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import in_process
from tiny import new_model, new_task

from tinymem.errors import DiskFull, UserError
from tinymem.localize.registry import METHODS
from tinymem.localize.subject import Subject, shared_sections
from tinymem.localize.task import TaskSettings
from tinymem.localize.unlearn import unlearn
from tinymem.localize.watch import Watch
from tinymem.records.table import load_records
from tinymem.training import checkpoint
from tinymem.training.fit import Stopped

SETTINGS = dict(steps=(3, 7), batch_size=8, lr=1e-3, warm_up=2)
CASES = {
    "plain": ("npo", {}),
    "half": ("npo", dict(dtype="bfloat16")),
    "low rank": ("npo", dict(lora_rank=2)),
    "own state": ("pdu", dict(dual_warm_up=1, dual_step=20.0)),
    "weights that no gradient reaches": ("rmu", dict(layer=0)),
    "mask": ("simnpo", dict(update_mask=("activations", "0.3"))),
}
UNLEARN = "src/localize/localize_memorization.py"


class Killed(BaseException):
    pass


def session(place, case, killed=None, stopped=None, force=False, **changes) -> list[int]:
    """One command: killed in a step, before it is saved, or stopped after one. Return the steps that it has done."""
    name, more = CASES[case]
    done = []

    def on_step(step, *_):
        done.append(step)
        if step == killed:
            raise Killed

    watch = Watch(on_step, lambda: nullcontext(lambda: done[-1] == stopped))
    model, task = new_model("gpt2"), replace(new_task(pad=13), watch=watch)
    if case == "half":
        model = model.bfloat16()
    about = shared_sections(model, task, TaskSettings(), {"data": {}, "model": {}, "training": {}})
    subject = Subject(model, task, None, about, place, place / "scores", metrics=())
    hp = METHODS[name].hyper_parameters(**{**SETTINGS, **more, **changes})
    with pytest.raises(Killed) if killed else pytest.raises(Stopped) if stopped else nullcontext():
        list(unlearn(subject, METHODS[name], hp, force=force))
    return done


def states(place):
    return sorted(place.glob("scores/*.state.safetensors"))


def outcome(place):
    """Everything that decides a result: records without times and machine, and the bytes of saved models."""
    records = {
        (record["method"]["lr"], record["method"]["steps"]): {
            part: value for part, value in record.items() if part not in ("cost", "environment")
        }
        for record in load_records(place)
    }
    return records, {path.parent.name: path.read_bytes() for path in place.glob("models/*/model.safetensors")}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_stopped_again_and_again(case, tmp_path, monkeypatch):
    assert session(tmp_path / "straight", case) == [*range(1, 8)] and not states(tmp_path / "straight")
    place = tmp_path / "disturbed"
    assert session(place, case, stopped=2) == [1, 2]
    assert session(place, case, stopped=3) == [3] and not load_records(place)  # before the edit was handed out
    assert session(place, case, stopped=5) == [4, 5]
    monkeypatch.setattr("tinymem.training.fit.SAVE_SECONDS", -1.0)  # after every step
    assert session(place, case, killed=7) == [6, 7] and len(states(place)) == 1
    assert session(place, case) == [7] and not states(place)
    records, models = outcome(place)
    assert len(records) == len(models) == 2 and (records, models) == outcome(tmp_path / "straight")


def test_a_training_of_other_settings_is_not_resumed(tmp_path):
    session(tmp_path, "plain", stopped=5)
    (first,) = states(tmp_path)
    assert session(tmp_path, "plain", stopped=4, lr=3e-3) == [1, 2, 3, 4]
    assert len(states(tmp_path)) == 2
    assert session(tmp_path, "plain", steps=(3,)) == [] and first in states(tmp_path)  # done; the other goes on
    assert session(tmp_path, "plain", steps=(4,)) == [1, 2, 3, 4] and first in states(tmp_path)
    assert session(tmp_path, "plain") == [6, 7] and first not in states(tmp_path)
    assert session(tmp_path, "plain", lr=3e-3) == [5, 6, 7] and not states(tmp_path)
    session(tmp_path / "straight", "plain")
    straight = outcome(tmp_path / "straight")[0]
    assert {key: outcome(tmp_path)[0][key] for key in straight} == straight


def test_force_starts_again(tmp_path):
    session(tmp_path, "plain", stopped=5)
    assert session(tmp_path, "plain", stopped=2, force=True) == [1, 2]
    assert session(tmp_path, "plain") == [*range(3, 8)]


def test_the_seconds_before_count(tmp_path):
    session(tmp_path, "plain", stopped=5)
    (state,) = states(tmp_path)
    progress = checkpoint.read_progress(state)
    assert len(progress.epoch_seconds) == 4 and 0 < progress.step_seconds < 10
    with safe_open(state, "pt") as file:
        text = file.metadata()["progress"]
    slower = text.replace('"step_seconds": ', '"step_seconds": 100')  # puts 100 in front of the digits
    save_file(load_file(state), state, metadata={"progress": slower})
    session(tmp_path, "plain")
    seconds = {record["method"]["steps"]: record["cost"]["seconds"] for record in load_records(tmp_path)}
    assert seconds[3] < 50 < 100 < seconds[7] < 1100


def test_a_damaged_state_is_named(tmp_path):
    session(tmp_path, "plain", stopped=5)
    (state,) = states(tmp_path)
    state.write_bytes(state.read_bytes()[:50])
    with pytest.raises(UserError, match=rf"{state}: damaged \(.*\); delete it and run again$"):
        session(tmp_path, "plain")
    state.unlink()
    assert session(tmp_path, "plain") == [*range(1, 8)]


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch, caplog):
    def full(path, *_):
        raise DiskFull(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("tinymem.training.fit.SAVE_SECONDS", -1.0)
    monkeypatch.setattr(checkpoint, "save_state", full)
    assert session(tmp_path, "plain") == [*range(1, 8)]
    assert len(load_records(tmp_path)) == 2 and "No space left" in caplog.records[0].getMessage()


def test_a_signal_while_it_trains_saves_and_the_same_command_resumes(
    memorizing_backdoor, tmp_path, monkeypatch, capsys
):
    words = ["--model_path", memorizing_backdoor.checkpoint, "--localization_method", "npo", "--steps", 2, 6]
    words += ["--data_dir", tmp_path, "--output_dir", tmp_path / "out", "--no_save_model", "--metrics", "accuracy"]
    on_step = Watch.step

    def interrupting(watch, step, steps):
        on_step(watch, step, steps)
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "step", interrupting)
        with pytest.raises(SystemExit) as end:
            in_process(UNLEARN, *words)
    kept = memorizing_backdoor.checkpoint.parent / "scores"
    assert end.value.code == 130 and "run the same command again to resume" in capsys.readouterr().err
    assert len(list(kept.rglob("npo_*.state.safetensors"))) == 1
    assert len(load_records(tmp_path / "out")) == 2  # the model as it is, and steps 2
    steps = []
    monkeypatch.setattr(Watch, "step", lambda watch, step, steps_in_all: steps.append(step))
    in_process(UNLEARN, *words)
    assert steps == [5, 6] and len(load_records(tmp_path / "out")) == 3 and not list(kept.rglob("*.state.safetensors"))
