"""Locks: one holder at a time, freed however the holder ends, inherited, and no file left behind."""

import os
import subprocess
import sys
import threading

import pytest

from tinymem import locks
from tinymem.cli.training import prepared_run
from tinymem.errors import UserError

HOLD = """
import sys, time
from tinymem import locks
assert locks.try_lock(sys.argv[1]) is not None
print("held", flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "deep" / "a.lock"
    first = locks.try_lock(path)
    assert locks.try_lock(path) is None and locks.owner(path).startswith(f"process {os.getpid()} on ")
    locks.unlock(path, first)
    assert not path.exists()
    second = locks.try_lock(path)
    assert second is not None
    locks.unlock(path, second)


def test_freed_by_sigkill(tmp_path):
    path = tmp_path / "a.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert locks.try_lock(path) is None and f"process {process.pid}" in locks.owner(path)
    process.kill()
    process.communicate()
    assert path.exists()
    descriptor = locks.try_lock(path)
    assert descriptor is not None
    locks.unlock(path, descriptor)


def test_a_child_holds_it_on(tmp_path):
    path = tmp_path / "a.lock"
    descriptor = locks.try_lock(path)
    process = subprocess.Popen(["sleep", "60"], pass_fds=(descriptor,))
    os.close(descriptor)  # as if this process had been killed
    assert locks.try_lock(path) is None
    process.kill()
    process.wait()
    assert locks.try_lock(path) is not None


def test_a_file_that_another_holder_removed_is_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "a.lock"
    real, opened = os.open, []

    def open_then_lose(*arguments):
        opened.append(real(*arguments))
        if len(opened) == 1:  # between opening and locking, its holder is done with it
            os.unlink(path)
        return opened[-1]

    monkeypatch.setattr(os, "open", open_then_lose)
    descriptor = locks.try_lock(path)
    assert len(opened) == 2 and os.path.samestat(os.stat(path), os.fstat(descriptor))
    locks.unlock(path, descriptor)


def test_without_locks_everybody_has_one(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with locks.locked(tmp_path / "a.lock"), locks.locked(tmp_path / "a.lock"):
        pass


def test_a_folder_in_the_way(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        locks.try_lock(tmp_path)


def test_a_second_command_in_a_run_folder_waits_and_says_so(tmp_path, capsys):
    settings = {"data_name": "increment"}
    order, entered = [], threading.Event()

    def second():
        entered.set()
        with prepared_run(tmp_path, settings, force=False):
            order.append("second")

    with prepared_run(tmp_path, settings, force=False) as run:
        leftover = run / f".state.safetensors.{0:032x}.tmp"
        leftover.write_text("written by an earlier version")
        os.utime(leftover, (0, 0))
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait()
        thread.join(0.4)
        assert leftover.exists()  # the second one has not cleared it away from under the first
        order.append("first")
    thread.join()
    message = capsys.readouterr().err
    assert order == ["first", "second"] and not leftover.exists()
    assert (
        message == f"{tmp_path}: process {os.getpid()} on {message.split()[4]} is at work here; waiting for it to end\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
