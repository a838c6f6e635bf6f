import json
import os
import shutil
import threading

import pytest
from safetensors import SafetensorError

from tinymem import files
from tinymem.errors import UserError

FULL_DISK = [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(text):
    """A writer for write_folder: one file, in a subfolder, with this text."""

    def write(folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text)

    return write


def content(folder) -> str:
    return (folder / "sub" / "a.txt").read_text()


def test_the_digest_does_not_depend_on_order_and_is_fixed_for_ever():
    assert files.digest({"a": 1, "b": [0.5, None]}) == files.digest({"b": [0.5, None], "a": 1})
    assert files.digest({}) == "44136fa355b3678a"


@pytest.mark.parametrize("error", FULL_DISK, ids=["OSError", "SafetensorError"])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    path = files.write_json(tmp_path / "a.json", {"old": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(UserError, match="a.json: .*No space left"):
        files.write_file(path, fail)
    assert json.loads(path.read_text()) == {"old": 1} and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [*FULL_DISK, KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_failed_write_leaves_the_old_folder(tmp_path, error):
    path = files.write_folder(tmp_path / "epoch_1", fill("old"))

    def fail(temporary):
        fill("half")(temporary)
        raise error

    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        files.write_folder(path, fail)
    assert content(path) == "old" and names(tmp_path) == ["epoch_1"]


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path):
    files.write_folder(tmp_path / "epoch_1", fill("old"))
    assert content(files.write_folder(tmp_path / "epoch_1", fill("new"))) == "new"
    assert names(tmp_path) == ["epoch_1"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_published(tmp_path, monkeypatch):
    path = files.write_folder(tmp_path / "epoch_1", fill("old"))
    rename = os.rename

    def broken(source, target):
        if ".tmp" in str(source) and not path.exists():
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(UserError, match="epoch_1: .*Input/output error"):
        files.write_folder(path, fill("new"))
    assert content(path) == "old" and names(tmp_path) == ["epoch_1"]


def test_a_kill_between_the_renames_does_not_lose_the_old_folder(tmp_path, monkeypatch):
    path = files.write_folder(tmp_path / "epoch_1", fill("old"))

    class Killed(BaseException):
        pass

    def killed(source, target):  # nothing is cleaned up or put back after a SIGKILL
        monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: None)
        monkeypatch.setattr(files, "_moved", lambda *args: None)
        raise Killed

    moved = files._moved
    monkeypatch.setattr(files, "_moved", lambda *args: moved(*args) if path.exists() else killed(*args))
    with pytest.raises(Killed):
        files.write_folder(path, fill("new"))
    monkeypatch.undo()
    assert not path.exists() and len(names(tmp_path)) == 2
    files.remove_leftovers(tmp_path)
    assert content(path) == "old" and names(tmp_path) == ["epoch_1"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    kept = [".hidden", ".notes.tmp", "metrics.csv", "model.tmp"]
    old = [".metrics.csv.4711.tmp", ".metrics.csv." + "0a" * 16 + ".tmp"]  # of earlier versions, which held no lock
    for name in [*kept, *old, ".young." + "0b" * 16 + ".tmp"]:
        (tmp_path / name).write_text("")
    for name in old:
        os.utime(tmp_path / name, (0, 0))
    for name in (".epoch_1." + "b2" * 16 + ".old", "epoch_1"):
        (tmp_path / name).mkdir()
        fill(name)(tmp_path / name)
    killed = tmp_path / (".epoch_1." + "b1" * 16 + ".tmp")
    killed.mkdir()
    (killed / files.LOCK).write_text("process 1 on nowhere")
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept, ".young." + "0b" * 16 + ".tmp", "epoch_1"])
    assert content(tmp_path / "epoch_1") == "epoch_1"
    files.remove_leftovers(tmp_path / "missing")


def test_what_a_live_writer_is_writing_stays(tmp_path):
    def write(temporary):
        temporary.write_text("half")
        files.remove_leftovers(tmp_path)
        temporary.write_text("whole")

    assert files.write_file(tmp_path / "a.txt", write).read_text() == "whole" and names(tmp_path) == ["a.txt"]


def test_threads_of_one_process_do_not_write_into_each_other(tmp_path):
    def write(worker):
        for _ in range(20):
            files.write_json(tmp_path / "a.json", [worker] * 2000)
            files.write_folder(tmp_path / "b", fill(str(worker) * 2000))

    failures = []
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert not failures and names(tmp_path) == ["a.json", "b"]
    assert len(set(files.read_json(tmp_path / "a.json"))) == len(set(content(tmp_path / "b"))) == 1


@pytest.mark.parametrize("removed", [True, False])
def test_a_cleaner_that_comes_before_the_lock_does_not_fail_the_writer(tmp_path, monkeypatch, removed):
    """A cleaner holds the lock of a temporary folder that its writer has just made; it has removed it, or will."""
    flock = files.locks._flock
    cleaned = []

    def cleaner_first(descriptor):
        if cleaned:
            return flock(descriptor)
        (place,) = tmp_path.glob(".*.tmp")
        cleaned.append(place)
        if removed:
            shutil.rmtree(place)
        return removed  # the lock is free again, but its file is gone; or the cleaner still holds it

    monkeypatch.setattr(files.locks, "_flock", cleaner_first)
    files.write_json(tmp_path / "a.json", [1])
    assert files.read_json(tmp_path / "a.json") == [1] and len(cleaned) == 1


def test_a_json_file_without_the_required_keys_is_damaged(tmp_path):
    path = files.write_json(tmp_path / "a.json", {"settings": {}, "results": {}})
    assert files.read_json(path, required=("settings", "results")) == files.read_json(path)
    with pytest.raises(UserError, match=r"a.json: .*is damaged \(no cost\); delete it and run again"):
        files.read_json(path, required=("settings", "cost"))
    with pytest.raises(UserError, match=r"is damaged \(no settings\)"):
        files.read_json(files.write_json(path, ["settings"]), required=("settings",))
