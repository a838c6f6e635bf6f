import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small import in_process as run
from transformers import AutoModelForCausalLM

from tinymem.data.build import build_dataset
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.training.finetune import finetuning_dataset

SIZES = dict(num_7=60, num_2=10, num_3=10, num_4=10, num_5=10, num_test=4, num_noise=9, length=5, max_ctx=24)
SIZES |= dict(prompt_tokens=8, continuation_tokens=8)
TRAIN = [f"--{name}={value}" for name, value in SIZES.items()]
TRAIN += "--n_layers 1 --n_embd 16 --n_heads 2 --batch_size 16 --epochs 1 --device cpu".split()


@pytest.fixture(scope="module", params=["noise", "backdoor"])
def dataset(request):
    sizes = SIZES if request.param == "noise" else {**SIZES, "num_7": 1500, "max_ctx": 30}
    return build_dataset(DataSettings(**sizes, artifact=request.param, duplicate=True))


def rows(tokens: torch.Tensor) -> list[tuple]:
    return sorted(map(tuple, tokens.tolist()))


def training_rows(dataset) -> list[tuple]:
    return rows(dataset.sequences[dataset.order])


def test_clean_is_every_clean_twin_once(dataset):
    assert training_rows(finetuning_dataset(dataset, "clean")) == rows(dataset.artifacts.clean)


def test_extra_is_all_training_data_but_the_artifacts(dataset):
    extra = training_rows(finetuning_dataset(dataset, "extra"))
    artifacts = set(dataset.artifact_ids.tolist())
    assert extra == rows(dataset.sequences[[i for i in range(len(dataset.sequences)) if i not in artifacts]])
    repeats = sum(10 ** int(group) for group in dataset.artifacts.group)
    assert len(extra) == len(dataset) - repeats and repeats > len(artifacts)
    assert not set(extra) & set(rows(dataset.artifacts.planted[dataset.measured(dataset.artifacts)]))


def test_both_is_the_two_together(dataset):
    parts = [training_rows(finetuning_dataset(dataset, name)) for name in ("clean", "extra", "both")]
    assert parts[2] == sorted(parts[0] + parts[1])


def test_what_is_measured_stays(dataset):
    tuned = finetuning_dataset(dataset, "both")
    assert tuned.artifacts is dataset.artifacts and tuned.tests is dataset.tests
    assert torch.equal(tuned.sequences[: len(dataset.sequences)], dataset.sequences)


def test_natural_artifacts_have_no_clean_twins(dataset):
    natural = replace(dataset, kind="natural")
    assert training_rows(finetuning_dataset(natural, "extra"))
    with pytest.raises(UserError, match="--ft_data both"):
        finetuning_dataset(natural, "both")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run("memorization_in_toy_models.py", *TRAIN, "--output_dir", folder, "--data_dir", folder / "data")
    return folder / "epoch_1"


def finetune(checkpoint, *arguments: object) -> None:
    run("ft_toy_model.py", "--model_path", checkpoint, "--data_dir", checkpoint.parent / "data", *arguments)


def test_script_end_to_end(checkpoint, capsys, tmp_path):
    finetune(checkpoint, "--clean_ft", "1", "--extra_ft", "0", "--ft_epochs", "2", "--plot")
    folder = checkpoint.parent / "finetuned" / "epoch_1_clean"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [row["epoch"] for row in metrics] == [0, 1, 2]
    trained = json.loads((checkpoint.parent / "metrics.json").read_text())[-1]
    assert metrics[0]["perplexity"] == trained["perplexity"]  # epoch 0 is the model as it was
    assert (folder / "finetuning.png").exists() and (folder / "epoch_2" / "model.safetensors").exists()
    (record,) = (json.loads(path.read_text()) for path in (folder / "records").glob("*.json"))
    assert record["method"] == {"name": "clean", "ft_epochs": 2} and record["training"]["epoch"] == 1
    assert len(record["results"]["epoch_seconds"]) == 2 and min(record["results"]["epoch_seconds"]) > 0
    shown = capsys.readouterr().out.splitlines()
    assert "seconds" in shown[0]
    live = [line.split() for line in shown if line.split()[:1] in (["epoch"], ["0"], ["1"], ["2"])]
    assert live[0][0] == "epoch" and "train_loss" in [name for line in live if line[0] == "epoch" for name in line]
    for number, line in enumerate(live):  # every value stands under a heading
        heading = next(other for other in live[number::-1] if other[0] == "epoch")
        assert len(line) == len(heading)

    finetune(checkpoint, "--ft_data", "clean", "--epochs", "2")
    assert "finished before" in capsys.readouterr().err
    finetune(checkpoint, "--ft_data", "clean", "--ft_epochs", "3")
    finetune(checkpoint, "--ft_data", "clean", "--ft_epochs", "3", "--output_dir", tmp_path)
    longer, straight = (load_file(path / "epoch_3" / "model.safetensors") for path in (folder, tmp_path))
    assert all(torch.equal(longer[name], straight[name]) for name in straight)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "epoch_3").state_dict()
    assert all(torch.equal(opened[name], straight[name]) for name in straight)


def test_a_model_that_was_trained_anew_is_finetuned_anew_with_force(checkpoint, tmp_path, capsys):
    flags = ["--ft_data", "clean", "--ft_epochs", "1", "--output_dir", tmp_path]
    finetune(checkpoint, *flags)
    before = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**before, "weights": "those of another model"}))
    with pytest.raises(SystemExit):
        finetune(checkpoint, *flags)
    assert "holds a run with --weights those of another model" in capsys.readouterr().err
    finetune(checkpoint, *flags, "--force")
    assert json.loads((tmp_path / "run.json").read_text()) == before


def test_example_tied_dropout_is_finetuned_as_it_is_evaluated(capsys, tmp_path):
    run(
        "memorization_in_toy_models.py", *TRAIN, "--example_tied_dropout", "--output_dir", tmp_path,
        "--data_dir", tmp_path / "data",
    )  # fmt: skip
    finetune(tmp_path / "epoch_1", "--ft_data", "both", "--ft_epochs", "1")
    assert "memory channels stay off" in capsys.readouterr().err
    folder = tmp_path / "finetuned" / "epoch_1_both"
    rows = [json.loads((path / "metrics.json").read_text()) for path in (tmp_path, folder)]
    assert rows[0][-1]["perplexity"] == rows[1][0]["perplexity"]
    assert json.loads((folder / "epoch_1" / "config.json").read_text())["example_tied_dropout"]


@pytest.mark.parametrize(
    "arguments, named",
    [
        ([], "none was given"),
        (["--ft_data", "clean", "--extra_ft", "1"], "clean, extra was given"),
        (["--ft_data", "dirty"], "--ft_data"),
        (["--ft_data", "clean", "--ft_epochs", "0"], "--ft_epochs 0"),
        (["--ft_data", "clean", "--n_layers", "4"], "--n_layers 4"),
        (["--ft_data", "clean", "--model_path", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_inputs_are_one_line_and_exit_2(checkpoint, arguments, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        finetune(checkpoint, *arguments)
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert named in message and message.count("\n") == 1


def test_a_finetuned_model_is_not_finetuned_again(checkpoint, tmp_path, capsys):
    finetune(checkpoint, "--ft_data", "extra", "--ft_epochs", "1", "--output_dir", tmp_path)
    with pytest.raises(SystemExit):
        finetune(tmp_path / "epoch_1", "--ft_data", "extra")
    assert "edited or fine-tuned" in capsys.readouterr().err
