"""Killed at random instants, four times each, and started again: a training, an unlearning, a training with --force."""

import random
import shutil
import time

import pytest
from small import SMALL_DATA, script, start

from tinymem.files import read_json

pytestmark = pytest.mark.slow

FLAGS = [text for name, value in SMALL_DATA.items() for text in (f"--{name}", int(value))]
TRAIN = ["memorization_in_toy_models.py", "--n_layers", 1, "--n_embd", 16, "--n_heads", 2, "--epochs", 6, *FLAGS]
TRAIN += ["--checkpoint_every", 1, "--batch_size", 32, "--device", "cpu"]
UNLEARN = ["src/localize/localize_memorization.py", "--localization_method", "durable", "activations"]
UNLEARN += ["--ratio", 0.05, 0.1, "--unlearn_set_name", "noise", "--device", "cpu"]
KILLS = 4


def train(place, *more):
    return [*TRAIN, "--output_dir", place / "run", "--data_dir", place / "data", *more]


def unlearn(place):
    return [
        *UNLEARN,
        "--model_path",
        place / "run" / "epoch_6",
        "--output_dir",
        place / "un",
        "--data_dir",
        place / "data",
    ]


def what_is_left(place) -> dict:
    """Path -> content of everything that decides results: weights, metrics, records without cost and environment."""
    found = {}
    for path in place.rglob("*"):
        name = str(path.relative_to(place))
        if path.name == "model.safetensors":
            found[name] = path.read_bytes()
        elif path.name == "metrics.json":
            found[name] = read_json(path)
        elif path.parent.name == "records" and path.suffix == ".json":
            found[name] = {k: v for k, v in read_json(path).items() if k not in ("cost", "environment")}
    return found


def kill(command, seconds: float, moments: random.Random, output) -> None:
    """Starts a command and kills it, KILLS times. What ended before the kill is removed: the machine is faster now."""
    kills = 0
    while kills < KILLS:
        process = start(*command)
        time.sleep(seconds * moments.uniform(0.3, 1))
        process.kill()
        process.communicate()
        if process.returncode < 0:
            kills += 1
        else:
            seconds *= 0.7
            shutil.rmtree(output)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with training and unlearning, and the seconds that each took."""
    place, seconds = tmp_path_factory.mktemp("undisturbed"), []
    for command in (train(place), unlearn(place)):
        begin = time.monotonic()
        done = script(*command)
        assert done.returncode == 0, done.stderr
        seconds.append(time.monotonic() - begin)
    return place, *seconds


@pytest.mark.nightly
def test_the_same_comes_out(undisturbed, tmp_path):
    place, training, unlearning = undisturbed
    expected, moments = what_is_left(place), random.Random(0)
    steps = [(train(tmp_path), training, "run"), (train(tmp_path, "--force"), training, "run")]
    steps += [(unlearn(tmp_path), unlearning, "un")]
    for number, (command, seconds, output) in enumerate(steps):
        kill(command, seconds, moments, tmp_path / output)
        done = script(*(word for word in command if word != "--force"))  # what a user types who forgot the flag
        assert done.returncode == 0, done.stderr
        done_so_far = {name: content for name, content in expected.items() if number == 2 or name.startswith("run")}
        assert what_is_left(tmp_path) == done_so_far
        assert not list(tmp_path.rglob(".*.tmp"))
