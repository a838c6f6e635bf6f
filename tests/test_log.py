"""--log_jsonl and --tensorboard: what happens, once, in files that no record depends on."""

import json
import os
import sys
from types import ModuleType

import pytest
from small import in_process, small_settings

from tinymem.cli import log as module
from tinymem.cli.display import Meter
from tinymem.cli.log import Lines, Log
from tinymem.errors import UserError
from tinymem.options import as_flags
from tinymem.records.table import load_records

TRAIN, LOCALIZE = "memorization_in_toy_models.py", "src/localize/localize_memorization.py"


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fill(path, steps, again=False, run="runs/a") -> None:
    log = Log(Lines(path, again))
    for step in steps:
        meter = Meter("training", 20, done=step)
        meter.losses = {"loss": float(step)}
        log.step(run, meter, last=True)


def test_a_resumed_run_goes_on_in_the_same_file_without_duplicates(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    fill(path, range(1, 11))
    fill(path, range(5, 13))
    assert [(line["step"], line["loss"], line["steps"]) for line in lines_of(path)] == [
        (n, n, 20) for n in range(1, 13)
    ]
    fill(path, range(1, 3), run="runs/b")
    assert [line["step"] for line in lines_of(path) if line["run"] == "runs/b"] == [1, 2]
    fill(path, range(1, 3), again=True)  # --force
    assert [line["step"] for line in lines_of(path) if line["run"] == "runs/a"][-2:] == [1, 2]


def test_what_a_killed_writer_left_stays_a_line_of_its_own(tmp_path):
    path = tmp_path / "log.jsonl"
    fill(path, [1, 2])
    whole = path.read_text()
    path.write_text(torn := whole + '{"time": "2026-01-01", "run": "runs/a", "wh')
    fill(path, [])  # a command that ends before its first line, such as a refused one
    fill(path, [2])  # nothing new
    assert path.read_text() == torn
    fill(path, [2, 3])
    fill(path, [3, 4])
    assert path.read_text().startswith(torn + "\n")
    third, fourth = path.read_text().removeprefix(torn + "\n").splitlines()
    assert [json.loads(line)["step"] for line in (third, fourth)] == [3, 4]


def test_what_is_no_log_keeps_every_byte(tmp_path):
    path = tmp_path / "mine.txt"
    for text in (b"my only line", b"two\nlines", b"\xff\x00", b"[" * 100_000):
        path.write_bytes(text)
        Lines(path)
        assert path.read_bytes() == text
        fill(path, [1])
        assert path.read_bytes().startswith(text + b"\n{")


def test_lines_of_others_stay(tmp_path):
    path = tmp_path / "log.jsonl"
    fill(path, [1, 2])
    whole = path.read_text()
    path.write_text("no JSON\n[1]\n" + whole)  # somebody else's lines stay
    fill(path, [3])
    assert path.read_text().startswith("no JSON\n[1]\n" + whole) and len(path.read_text().splitlines()) == 5


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is a pipe, not a file"):
        Lines(tmp_path / "pipe")


def test_values_that_are_not_finite_are_null(tmp_path):
    log = Log(Lines(tmp_path / "log.jsonl"))
    log.metrics(
        "a", "unedited", 0, {"perplexity": float("inf"), "auc": None, "kl": float("nan"), "text": "x", "mem": 5}
    )
    assert lines_of(tmp_path / "log.jsonl")[0]["metrics"] == {"perplexity": None, "auc": None, "kl": None, "mem": 5}


def test_steps_are_written_once_a_second(tmp_path, monkeypatch):
    now = [50.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    log, meter = Log(Lines(tmp_path / "log.jsonl")), Meter("training", 1000)
    for step in range(1, 101):
        now[0] += 0.1
        meter.to(step, 7)
        log.step("run", meter)
    found = lines_of(tmp_path / "log.jsonl")
    assert 10 <= len(found) <= 11 and {line["tokens_per_second"] for line in found[1:]} == {70}


def training_words(folder, epochs: int) -> list:
    settings = small_settings()
    flags = as_flags(*settings.parts, leave_out=("epochs", "checkpoint_every"))
    return [*flags, "--epochs", epochs, "--checkpoint_every", 1, "--output_dir", folder / "run", "--data_dir",
            folder / "data", "--device", "cpu"]  # fmt: skip


def test_a_training_and_an_unlearning_are_logged_and_records_stay_the_same(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    in_process(TRAIN, *training_words(tmp_path, 1), "--log_jsonl", path)
    in_process(TRAIN, *training_words(tmp_path, 3), "--log_jsonl", path)
    found = lines_of(path)
    assert [line["epoch"] for line in found if "metrics" in line] == [1, 2, 3]
    steps = [line["step"] for line in found if "loss" in line]
    assert (
        steps == sorted(set(steps))
        and steps[-1] == found[-1]["step"]
        and {line["what"] for line in found} == {"training"}
    )
    (record,) = (r for r in load_records(tmp_path / "run") if r["training"]["epochs"] == 3)
    last = found[-1]["metrics"]
    assert all(record["results"][name] == value for name, value in last.items())
    in_process(TRAIN, *training_words(tmp_path / "plain", 3))
    (plain,) = load_records(tmp_path / "plain" / "run")
    assert plain["results"] == record["results"]
    in_process(TRAIN, *training_words(tmp_path, 3), "--log_jsonl", path)  # finished before
    assert lines_of(path) == found

    words = ["--model_path", tmp_path / "run" / "epoch_3", "--localization_method", "npo", "subnet", "--steps", 2, 3]
    words += ["--ratio", 0.1, "--epochs", 1, "--unlearn_set_name", "noise", "--no_save_model", "--data_dir"]
    words += [tmp_path / "data", "--output_dir", tmp_path / "out"]
    in_process(LOCALIZE, *words, "--log_jsonl", path)
    digests = {file.stem for file in (tmp_path / "out" / "records").glob("*.json")}
    new = lines_of(path)[len(found) :]
    measured = {line["what"]: line for line in new if "metrics" in line}
    assert measured.keys() == {"unedited", "npo 2", "npo 3", "subnet 0.1"}
    assert {line["run"] for line in new} == digests and measured["subnet 0.1"]["ratio"] == 0.1
    assert {"forget_loss", "retain_loss"} < next(line for line in new if line["what"] == "npo").keys()
    in_process(LOCALIZE, *words, "--log_jsonl", path)
    assert lines_of(path)[len(found) :] == new


class Writer:
    """What torch.utils.tensorboard.SummaryWriter is called with."""

    written: list = []

    def __init__(self, folder, purge_step, flush_secs):
        self.folder = folder

    def close(self):
        pass

    def add_scalar(self, name, value, step):
        self.written.append((self.folder.rsplit("/", 1)[1], name, value, step))


def test_tensorboard_gets_the_same_values(tmp_path, monkeypatch, capsys):
    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr(Writer, "written", [])
    path = tmp_path / "log.jsonl"
    in_process(TRAIN, *training_words(tmp_path, 1), "--log_jsonl", path, "--tensorboard", tmp_path / "board")
    expected = []
    for line in lines_of(path):
        values = {f"metrics/{name}": value for name, value in line.get("metrics", {}).items() if value is not None}
        values = values or {name: line[name] for name in ("loss", "tokens_per_second")}
        expected += [("training_run", name, value, line["step"]) for name, value in values.items()]
    assert Writer.written == expected and len(expected) > 5


@pytest.mark.parametrize("given, message", [
    (["--tensorboard", "board"], "--tensorboard board: the package tensorboard is not installed"),
    (["--log_jsonl", "."], "--log_jsonl .: cannot be written (Is a directory)"),
])  # fmt: skip
def test_a_log_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as end:
        in_process(TRAIN, *training_words(tmp_path, 1), *given)
    assert end.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "run").exists()
