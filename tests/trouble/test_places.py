"""Shared folders, links, leftovers, full disks, and what a killed --force leaves."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import in_process

from tinymem import errors, files, locks
from tinymem.data.build import load_dataset
from tinymem.errors import DiskFull, UserError
from tinymem.training import checkpoint

WRITER = """
import sys, time
from pathlib import Path
from tinymem import files
def write(temporary):
    if sys.argv[2] == "folder":
        (temporary / "x").write_text("half")
    else:
        temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
getattr(files, f"write_{sys.argv[2]}")(Path(sys.argv[1]) / "model", write)
"""


@pytest.fixture
def writer(tmp_path):
    """writer(kind): a process that is in the middle of writing `model` in tmp_path."""
    started = []

    def start(kind):
        command = [sys.executable, "-c", WRITER, str(tmp_path), kind]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "writing\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def hidden(folder) -> list:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path, writer, kind):
    living, dead = writer(kind), writer(kind)
    dead.kill()
    dead.wait()
    assert len(hidden(tmp_path)) == 2
    files.remove_leftovers(tmp_path)
    (left,) = hidden(tmp_path)
    living.kill()
    living.wait()
    files._cleared.discard(tmp_path)  # as in a new process, whose first write here clears away
    files.write_json(tmp_path / "a.json", {})
    assert not left.exists() and [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_what_is_written_follows_the_umask(tmp_path, mask, mode):
    def write(temporary):
        (temporary / "sub").mkdir()
        save_file({"a": torch.zeros(1)}, temporary / "sub" / "x.safetensors")

    before = os.umask(mask)
    try:
        made = [files.write_file(tmp_path / "x.safetensors", lambda path: save_file({"a": torch.zeros(1)}, path))]
        made.append(files.write_folder(tmp_path / "model", write) / "sub" / "x.safetensors")
        folders = [tmp_path / "model", tmp_path / "model" / "sub", files.writable_folder(tmp_path / "made")]
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in made] == [mode] * 2
    assert [path.stat().st_mode & 0o777 for path in folders] == [0o777 & ~mask] * 3


def test_nothing_is_written_through_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("a.json", "a.lock"):
        (tmp_path / name).symlink_to(precious)
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(UserError, match="a.lock: is a link"):
        locks.try_lock(tmp_path / "a.lock")
    os.link(precious, tmp_path / "b.lock")
    os.mkfifo(tmp_path / "c.lock")
    for name in ("b.lock", "c.lock"):
        with pytest.raises(UserError, match=f"{name}: is no lock"):
            locks.try_lock(tmp_path / name)
    assert precious.read_text() == "mine" and (tmp_path / "a.json").read_text() == "1\n"


def short_write(path):
    """What numpy says of a disk that is full in the middle of an array."""
    raise OSError("1000 requested and 512 written")


def tokenizers(path):
    raise Exception("No space left on device (os error 28)")


def quota(path):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize("write", [short_write, tokenizers, quota], ids=lambda write: write.__name__)
def test_every_way_to_say_that_the_disk_is_full(tmp_path, write):
    with pytest.raises(DiskFull) as caught:
        files.write_file(tmp_path / "x", write)
    assert any(words in str(caught.value) for words in errors.FULL) and not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_numpy_on_a_full_disk_is_seen():
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError) as caught:
        np.zeros(10**6).tofile(file)
    assert errors.full_disk(caught.value) in errors.FULL


def whole_run(folder):
    """The files of a finished run of three checkpoints with what was made of them."""
    for name in ("records/a.json", "unlearned/epoch_3/records/b.json", "scores/c", "metrics.json", "metrics.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / checkpoint.STATE).touch()
    for epoch in (1, 2, 10):
        (folder / f"epoch_{epoch}").mkdir()
        for name in ("model.safetensors", checkpoint.STATE):
            (folder / f"epoch_{epoch}" / name).touch()


def test_a_killed_force_leaves_a_run_that_was_interrupted(tmp_path, monkeypatch):
    """Killed before every single step of clear: never a record without its model, never half a checkpoint."""

    class Killed(BaseException):
        pass

    for steps in range(20):
        run = tmp_path / f"run_{steps}"
        whole_run(run)
        left = [steps]

        def counted(real):
            def step(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real(*arguments, **options)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(files, "remove_folder", counted(files.remove_folder))
            patch.setattr("pathlib.Path.unlink", counted(type(run).unlink))
            try:
                checkpoint.clear(run)
                finished = True
            except Killed:
                finished = False
        present = [n for n in (1, 2, 10) if (run / f"epoch_{n}").exists()]
        assert present == [1, 2, 10][: len(present)]
        assert present == [1, 2, 10] or not any((run / n).exists() for n in ("records", "unlearned", "metrics.json"))
        assert all((run / f"epoch_{n}" / "model.safetensors").exists() for n in present)
        if finished:
            assert not list(run.iterdir()) and steps > 5
            return
    raise AssertionError("clear never came to its end")


def test_a_folder_goes_at_once(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x").touch()
    seen = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **options: seen.append((tmp_path / "model").exists()))
    files.remove_folder(tmp_path / "model")
    assert seen == [False]


@pytest.mark.parametrize("name, words", [
    ("memorization_in_toy_models.py", ["--data_name", "wiki", "--corpus", "empty.txt", "--train_tokenizer"]),
    ("memorization_in_toy_models.py", ["--num_7", 9, "--num_noise", 10]),
    ("ft_toy_model.py", ["--model_path", "model", "--ft_data", "clean"]),
    ("src/localize/localize_memorization.py", ["--model_path", "model", "--localization_method", "durable"]),
    ("src/localize/measure.py", ["no_model", "--edit_of", "model", "--unlearn_set_name", "noise"]),
])  # fmt: skip
def test_what_is_refused_leaves_nothing_behind(memorizing_noise, tmp_path, monkeypatch, capsys, name, words):
    """Text that is empty, too little data, a data folder that is a file, a folder that is no model; with a log."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(memorizing_noise.checkpoint, "model")
    Path("empty.txt").touch()
    Path("no_model").mkdir()
    data = "empty.txt" if words[0] == "--model_path" else "data"
    if words[0] == "no_model":
        load_dataset(memorizing_noise.settings.data, data)
    before = {path for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as end:
        in_process(name, *words, "--data_dir", data, "--output_dir", "runs/out", "--log_jsonl", "logs/a.jsonl")
    assert end.value.code == 2 and capsys.readouterr().err
    assert {path for path in tmp_path.rglob("*")} == before
