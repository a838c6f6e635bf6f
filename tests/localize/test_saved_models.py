"""Attacks and metrics that are added later run on the saved model, which must be whole and that of the run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import in_process

from tinymem import files
from tinymem.models.tinymem import load_model
from tinymem.records.table import load_records

SCRIPT, WEIGHTS, ABOUT = "src/localize/localize_memorization.py", "model.safetensors", "tinymem.json"
STRONG, WEAK = 0.3, 0.1


@pytest.fixture(scope="module")
def unlearn(memorizing_noise, tmp_path_factory):
    """Unlearn into a folder. Return the folders of the weak and of the strong edit."""
    data = tmp_path_factory.mktemp("data")

    def run(output: Path, *more) -> list[Path]:
        words = ["--model_path", memorizing_noise.checkpoint, "--data_dir", data, "--output_dir", output]
        words += ["--localization_method", "durable", "--ratio", WEAK, STRONG, "--metrics", "percent_memorized"]
        in_process(SCRIPT, *words, *more)
        return sorted((output / "models").iterdir())

    return run


@pytest.fixture(scope="module")
def finished(unlearn, tmp_path_factory):
    unlearn(output := tmp_path_factory.mktemp("finished"))
    return output


@pytest.fixture
def output(finished, tmp_path):
    """A copy of finished runs."""
    return shutil.copytree(finished, tmp_path / "out")


def results(folder: Path, kind: str) -> dict:
    """Return the results of records of a kind by ratio."""
    found = [record for record in load_records(folder) if record["kind"] == kind]
    return {record.get("method", {}).get("ratio"): record["results"] for record in found}


def cut(weak: Path, strong: Path) -> None:
    with open(strong / WEIGHTS, "r+b") as file:
        file.truncate(20000)


def other_weights(weak: Path, strong: Path) -> None:
    shutil.copy(weak / WEIGHTS, strong / WEIGHTS)


def other_folder(weak: Path, strong: Path) -> None:
    shutil.rmtree(strong)
    shutil.copytree(weak, strong)


def one_number(weak: Path, strong: Path) -> None:
    tensors = load_file(strong / WEIGHTS)
    next(tensor for name, tensor in tensors.items() if name.endswith("c_fc.weight"))[0, 0] += 1.0
    save_file(tensors, strong / WEIGHTS, metadata={"format": "pt"})


def other_names(weak: Path, strong: Path) -> None:
    save_file({"a.weight": torch.zeros(2)}, strong / WEIGHTS)


def other_shape(weak: Path, strong: Path) -> None:
    save_file({name: tensor[..., :1].contiguous() for name, tensor in load_file(strong / WEIGHTS).items()},
              strong / WEIGHTS)  # fmt: skip


def no_weights(weak: Path, strong: Path) -> None:
    (strong / WEIGHTS).unlink()


CHANGED = {
    cut: "model.safetensors: damaged",
    other_weights: "its weights have changed since they were saved",
    other_folder: "holds the model of another run",
    one_number: "its weights have changed since they were saved",
    other_names: "does not hold this model's weights",
    other_shape: "does not hold this model's weights",
    no_weights: "holds no weights",
}


@pytest.mark.parametrize("change", CHANGED, ids=lambda change: change.__name__)
def test_a_saved_model_that_changed_is_not_attacked_and_made_again(unlearn, output, capsys, change):
    weak, strong = sorted((output / "models").iterdir())
    before = (strong / WEIGHTS).read_bytes()
    change(weak, strong)
    with pytest.raises(SystemExit) as end:
        unlearn(output, "--attack", "quantize")
    *_, error = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and f"{strong}" in error and CHANGED[change] in error and "run again" in error, error
    assert results(output, "attack").keys() <= {None, WEAK}
    if change is other_weights:
        shutil.rmtree(strong)
        unlearn(output, "--attack", "quantize")
        assert (strong / WEIGHTS).read_bytes() == before and results(output, "attack").keys() >= {WEAK, STRONG}


def test_a_saved_model_is_used_as_it_is(unlearn, output, memorizing_noise):
    about = [json.loads((folder / ABOUT).read_text()) for folder in sorted((output / "models").iterdir())]
    assert all(len(each["weights"]) == 16 for each in about) and about[0]["weights"] != about[1]["weights"]
    times = {path: path.stat().st_mtime_ns for path in output.rglob(WEIGHTS)}
    unlearn(output, "--attack", "quantize", "--metrics", "percent_memorized", "perplexity")
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob(WEIGHTS)}
    assert all("perplexity" in row for row in results(output, "unlearn").values())
    assert results(output, "attack").keys() >= {WEAK, STRONG}
    load_model(next(iter(times)).parent)


def test_a_folder_of_an_earlier_version_has_no_fingerprint_and_is_accepted(unlearn, output):
    weak, strong = sorted((output / "models").iterdir())
    about = files.read_json(strong / ABOUT)
    del about["weights"]
    files.write_json(strong / ABOUT, about)
    one_number(weak, strong)
    unlearn(output, "--attack", "quantize")
    assert results(output, "attack").keys() >= {WEAK, STRONG}
