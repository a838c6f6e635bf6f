"""A built wheel works alone: installed into an empty folder and used from another one, without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from small import ROOT

from tinymem.scripts import OUTSIDE

pytestmark = pytest.mark.slow
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
TRAIN = """train --num_7 100 --num_2 20 --num_3 20 --num_4 20 --num_5 20 --num_test 10 --num_noise 9 --length 6
    --max_ctx 30 --prompt_tokens 10 --continuation_tokens 10 --duplicate --n_layers 2 --n_embd 32 --n_heads 2
    --epochs 6 --checkpoint_every 6 --batch_size 32 --lr 4e-3 --output_dir run"""
MODEL = "--model_path run/epoch_6"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what is built, since building writes beside it."""
    folder = tmp_path_factory.mktemp("tree") / "tree"
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", *OUTSIDE):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tree) -> Path:
    """The wheel, built without a network."""
    build = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tree.parent), str(tree)]
    subprocess.run([*PIP, *build], check=True)
    (path,) = tree.parent.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def tinymem(wheel, tmp_path_factory):
    """tinymem(command line): what the installed command prints in an empty folder; it must end well."""
    place, work = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("work")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(place), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}

    def python(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(place) in python("-c", "import tinymem; print(tinymem.__file__)")  # not that of the repository

    def command(line: str) -> str:
        return python(str(place / "bin" / "tinymem"), *line.split())

    command.work = work
    return command


def test_it_holds_every_file_of_the_package_and_the_scripts(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {f"tinymem/{path.relative_to(ROOT / 'src')}" for path in files}
    expected |= {f"tinymem/scripts/{Path(path).name}" for path in OUTSIDE}
    assert {"tinymem/py.typed", "tinymem/models/known_shapes.json", "tinymem/pages/templates/page.js"} < expected
    assert {name for name in names if name.startswith("tinymem/")} == expected


def test_what_it_needs_is_declared(wheel):
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    lines = zipfile.ZipFile(wheel).read(name).decode().partition("\n\n")[0].splitlines()
    needed = [line.split(": ")[1] for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert {"torch", "transformers", "matplotlib", "parsl"} < {each.partition(">=")[0] for each in needed}
    assert all(">=" in each and "==" not in each.partition(";")[0] for each in needed)
    assert "Requires-Python: >=3.10" in lines and "Description-Content-Type: text/markdown" in lines


def test_the_source_distribution_builds_the_same_wheel(tree, wheel, tmp_path):
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    made = subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True, text=True)
    archive = tmp_path / made.stdout.splitlines()[-1]
    build = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path / "again"), str(archive)]
    subprocess.run([*PIP, *build], check=True)
    (again,) = (tmp_path / "again").glob("*.whl")
    one, other = ({i.filename: i.CRC for i in zipfile.ZipFile(path).infolist()} for path in (wheel, again))
    record = next(name for name in one if name.endswith("/RECORD"))
    assert one.pop(record) and other.pop(record) and one == other


def test_it_trains_unlearns_and_sweeps_alone(tinymem):
    assert "usage: tinymem COMMAND" in tinymem("--help")
    assert "model: run/epoch_6" in tinymem(TRAIN)
    assert "tinymem unlearn --model_path" in tinymem("unlearn --help")
    assert "activations" in tinymem(f"unlearn {MODEL} --localization_method activations --ratio 0.05 0.1")
    assert "best: activations" in tinymem("records best run")
    planned = tinymem(f"sweep {MODEL} --methods activations durable --ratios 0.2 --dry_run")
    assert planned.count("python -m tinymem unlearn ") == 2
    swept = tinymem(f"sweep {MODEL} --methods activations durable --ratios 0.2 --max_workers 1")
    assert ["all", "2", "2", "0", "0", "0"] in [line.split() for line in swept.splitlines()]
    assert "best: " in swept
    assert "unlearning_scatter" in tinymem("figures run")
    path = next((tinymem.work / "run" / "unlearned" / "epoch_6" / "records").glob("*.json"))
    assert "python -m tinymem " in tinymem(f"records rerun {path} --dry_run")
    assert "the same to the digit" in tinymem(f"records rerun {path}")
