"""Killed at any moment and started again, a run ends with the same bytes."""

import os
import random
import signal
import time
import uuid

import pytest
from small import SMALL_DATA, script, start

from tinymem.files import read_json

pytestmark = pytest.mark.slow  # a run of its own for each
COMMAND = ["memorization_in_toy_models.py", "--n_layers", 1, "--n_embd", 16, "--n_heads", 2, "--epochs", 6]
COMMAND += ["--checkpoint_every", 1, "--batch_size", 32, "--device", "cpu"]
COMMAND += [text for name, value in SMALL_DATA.items() for text in (f"--{name}", int(value))]


def weights(run, epoch=6) -> bytes:
    return (run / f"epoch_{epoch}" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = script(*COMMAND, "--output_dir", folder / "run", "--data_dir", folder / "data", "--plot")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_same_command_gives_the_same_bytes(undisturbed, tmp_path):
    script(*COMMAND, "--output_dir", tmp_path / "run", "--data_dir", tmp_path / "data")
    assert weights(tmp_path / "run") == weights(undisturbed / "run")


def test_killed_again_and_again(undisturbed, tmp_path):
    run = tmp_path / "run"
    command = [*COMMAND, "--output_dir", run, "--data_dir", tmp_path / "data"]
    moments, kills = random.Random(0), 0
    for epoch in (1, 2, 4):  # right after a checkpoint folder appears, the state file is being written
        process = start(*command)
        while process.poll() is None and not (run / f"epoch_{epoch}").exists():
            time.sleep(0.001)
        time.sleep(moments.random() * 0.02)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    torn = uuid.uuid4().hex  # what a kill in the middle of a write leaves behind
    (run / f".epoch_6.{torn}.tmp").mkdir()
    (run / f".epoch_6.{torn}.tmp" / "lock").touch()
    earlier = run / f".state.safetensors.{torn}.tmp"  # of an earlier version, which held no lock
    earlier.write_bytes(b"half")
    os.utime(earlier, (0, 0))
    done = script(*command)
    assert done.returncode == 0, done.stderr
    assert not list(run.glob(".*.tmp"))
    assert weights(run) == weights(undisturbed / "run")
    assert read_json(run / "metrics.json") == read_json(undisturbed / "run" / "metrics.json")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_saves_and_says_how_to_go_on(undisturbed, tmp_path):
    run = tmp_path / "run"
    command = [*COMMAND, "--epochs", 20, "--output_dir", run, "--data_dir", tmp_path / "data"]  # time to interrupt it
    process = start(*command)
    while process.poll() is None and not (run / "epoch_2").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    message = process.communicate()[1]
    assert process.returncode == 130 and "same command" in message
    assert script(*command).returncode == 0
    assert weights(run) == weights(undisturbed / "run")


def test_a_finished_run_is_not_done_again_and_force_does_it(undisturbed):
    run = undisturbed / "run"
    before = (run / "epoch_6").stat().st_mtime_ns
    again = script(*COMMAND, "--output_dir", run, "--data_dir", undisturbed / "data")
    assert again.returncode == 0 and "finished before" in again.stderr
    assert (run / "epoch_6").stat().st_mtime_ns == before
    bytes_before = weights(run)
    for name in ("unlearned", "finetuned"):  # of the old models
        (run / name / "epoch_6" / "records").mkdir(parents=True)
    forced = script(*COMMAND, "--output_dir", run, "--data_dir", undisturbed / "data", "--force")
    assert forced.returncode == 0 and "finetuned, unlearned of the old models are removed" in forced.stderr
    assert (run / "epoch_6").stat().st_mtime_ns > before and weights(run) == bytes_before
    assert not (run / "unlearned").exists() and not (run / "finetuned").exists()


def test_what_a_run_leaves_behind(undisturbed):
    run = undisturbed / "run"
    assert {path.name for path in run.iterdir()} == {
        *(f"epoch_{n}" for n in range(1, 7)), "metrics.csv", "metrics.json", "records", "run.json",
        "state.safetensors", "training.pdf", "training.png",
    }  # fmt: skip
    header, *lines = (run / "metrics.csv").read_text().splitlines()
    assert len(lines) == 6 and {"train_loss", "accuracy_seven", "loss_five"} <= set(header.split(","))
    (record,) = (read_json(path) for path in (run / "records").iterdir())
    assert record["data"]["num_7"] == 100 and record["results"]["epoch"] == 6
    assert record["cost"]["seconds"] > 0 and record["cost"]["peak_memory_gb"] > 0
    assert {"torch", "transformers", "python", "device"} <= set(record["environment"])


def test_another_configuration_is_refused(undisturbed):
    refused = script(*COMMAND, "--output_dir", undisturbed / "run", "--lr", 0.5)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "--lr 0.001" in refused.stderr and "--output_dir" in refused.stderr


def test_a_run_does_not_go_back_for_a_checkpoint(undisturbed, tmp_path):
    run = tmp_path / "run"
    words = ["--output_dir", run, "--data_dir", tmp_path / "data"]
    assert script(*COMMAND, *words, "--epochs", 3, "--checkpoint_every", 3).returncode == 0
    refused = script(*COMMAND, *words)
    said = refused.stderr.splitlines()[-1]  # behind a line that says where the training is
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "is past epoch 1, for which --checkpoint_every 1 needs a missing checkpoint" in said
    assert script(*COMMAND, *words, "--checkpoint_every", 3).returncode == 0
    assert weights(run) == weights(undisturbed / "run")


@pytest.mark.parametrize("name", ["state.safetensors", "run.json"])
def test_a_damaged_file_is_named(undisturbed, tmp_path, name):
    run = tmp_path / "run"
    script(*COMMAND, "--epochs", 1, "--output_dir", run, "--data_dir", tmp_path / "data")
    (run / name).write_bytes((run / name).read_bytes()[:40])
    refused = script(*COMMAND, "--output_dir", run, "--data_dir", tmp_path / "data")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert name in refused.stderr and "delete it" in refused.stderr
