"""`records rerun`: a record is made again from itself alone, and the results are compared."""

import json
import shlex
import shutil

import pytest
from handmade import command
from small import in_process, small_settings
from transformers import GPT2LMHeadModel

from tinymem import cli
from tinymem.options import as_flags
from tinymem.records.identity import record_digest
from tinymem.records.record import read_record
from tinymem.sweeps.record_command import words_of

TRAIN, FINETUNE = "memorization_in_toy_models.py", "ft_toy_model.py"
LOCALIZE = "src/localize/localize_memorization.py"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A training, and an unlearning of it with an attack: (folder, the records by kind)."""
    folder = tmp_path_factory.mktemp("study")
    words = ["--data_dir", folder / "data", "--device", "cpu"]
    run = folder / "runs" / "plain"
    in_process(TRAIN, *as_flags(*small_settings().parts), *words, "--output_dir", run)
    in_process(LOCALIZE, "--model_path", run / "epoch_6", "--localization_method", "npo", "--steps", 2, 4, "--lr", 2e-3,
               "--update_mask", "durable", 0.1, "--unlearn_set_name", "noise", "--no_save_model", "--attack",
               "quantize", "--quantize.bits", 4, *words)  # fmt: skip
    in_process(FINETUNE, "--model_path", run / "epoch_6", "--ft_data", "clean", "--ft_epochs", 1, *words)
    paths = {name: path for path in sorted(run.rglob("records/*.json")) for name in [called(read_record(path))]}
    return folder, paths


def called(record) -> str:
    return record["kind"] + (" of the original" if record.get("attack") and "method" not in record else "")


@pytest.fixture
def here(monkeypatch, study):
    """Scripts run in this process, from the study's folder."""
    monkeypatch.chdir(study[0])
    monkeypatch.setattr(cli, "run_script", lambda words: in_process(*map(str, words)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return study[1]


@pytest.mark.parametrize("kind", ["train", "finetune", "unedited", "unlearn", "attack", "attack of the original"])
def test_a_record_run_again_agrees_to_the_digit(here, kind, tmp_path, capsys):
    words = ["rerun", here[kind], "--output_dir", tmp_path / "again", "--data_dir", "data"]
    assert command(*words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("the same to the digit: ") and int(printed[-1].split()[5]) >= 10
    assert list((tmp_path / "again" / "records").glob(f"{here[kind].stem}.json"))  # the same run
    if kind == "train":  # again: nothing is run, which is said
        assert command(*words) == 0 and "has the record of an earlier rerun" in capsys.readouterr().err


def test_what_differs_is_told_and_exits_1(here, tmp_path, capsys):
    place = tmp_path / "old" / "records" / here["unlearn"].name
    place.parent.mkdir(parents=True)
    record = json.loads(here["unlearn"].read_text())
    record["results"]["perplexity"] += 0.5
    record["results"]["of_another_tool"] = 3
    place.write_text(json.dumps(record))
    assert command("rerun", place, "--output_dir", tmp_path / "again", "--data_dir", "data") == 1
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if line.strip().startswith("perplexity"))
    assert row[-1] == "-0.5000" and "\n1 of " in printed and "not measured again: of_another_tool" in printed


def test_the_command_is_printed_and_not_run(here, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_script", lambda words: pytest.fail("a run"))
    assert command("rerun", here["attack"], "--dry_run") == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[1:3] == ["python", LOCALIZE] and words[words.index("--update_mask") + 1 :][:2] == ["durable", "0.1"]
    assert words[words.index("--attack") + 1 :][:3] == ["quantize", "--quantize.bits", "4"] and "--lr" in words
    assert command("rerun", here["train"], "--dry_run") == 0
    assert f" {TRAIN} --num_7=100 " in capsys.readouterr().out


def test_a_record_from_before_there_were_several_draws_is_made_again_with_one(here):
    record = read_record(here["attack"])
    for draws, flag in (({}, "1"), ({"draws": 3}, "3")):
        words = words_of(record | {"attack": {"name": "weight_noise", "scale": 0.1, **draws}}, here["attack"])
        assert words[words.index("--weight_noise.draws") + 1] == flag
    assert "--lora_rank" not in words  # left out at its default


def test_what_cannot_be_run_again_is_one_line(here, tmp_path, capsys):
    def refused(path, *more) -> str:
        assert command("rerun", path, *more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def changed(kind, /, **parts):
        record = json.loads(here[kind].read_text())
        for name, part in parts.items():
            record[name] = {**record[name], **part} if isinstance(part, dict) else part
        path = tmp_path / "records" / f"{record_digest(record)}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record))
        return path

    assert "no such file" in refused(tmp_path / "none.json")
    assert "is a folder" in refused(tmp_path)
    for text in ("my notes", "{}"):  # a file of the user's own is not to be deleted
        (tmp_path / "notes.json").write_text(text)
        assert "give a record, such as" in refused(tmp_path / "notes.json")
    assert "a record of kind measured does not say where its model lies" in refused(changed("unlearn", kind="measured"))
    parent = read_record(here["attack"])["parent"]  # the edit of another tool, attacked
    edit = json.loads((here["attack"].parent / f"{parent}.json").read_text()) | {"kind": "measured"}
    attacked = changed("attack", parent=record_digest(edit))
    (tmp_path / "records" / f"{record_digest(edit)}.json").write_text(json.dumps(edit))
    assert "a record of kind measured does not say where its model lies" in refused(attacked)
    assert "epoch 7 of the training" in refused(changed("unlearn", training={"epoch": 7}))
    assert "mine is no method or attack of TinyMem" in refused(changed("unlearn", method={"name": "mine"}))
    assert "npo has no setting speed" in refused(changed("unlearn", method={"speed": 1}))
    assert "which is not beside it" in refused(changed("attack", parent="0" * 16)).replace("is not", "which is not")
    text = dict(data_name="wiki", corpus=str(tmp_path / "gone.txt"), corpus_sha256="0" * 64)
    assert "gone.txt" in refused(changed("train", data=text))
    assert "the record itself is there" in refused(here["train"], "--output_dir", here["train"].parent.parent)


def measured_elsewhere(study, folder, *twin):
    """Measures the study's model as if somebody else had trained it; returns the records, by kind, that are new."""
    model, records = folder / "foreign", folder / "out" / "records"
    if not model.exists():
        shutil.copytree(study[0] / "runs/plain/epoch_6", model, ignore=shutil.ignore_patterns("tinymem.json"))
    before = set(records.glob("*.json"))
    words = ["--output_dir", folder / "out", "--data_dir", study[0] / "data", "--device", "cpu"]
    data = ["--data_name", "increment", *as_flags(small_settings().data)]
    in_process("src/localize/measure.py", model, *data, *words, *twin, "--metrics", "perplexity")
    return {read_record(path)["kind"]: path for path in set(records.glob("*.json")) - before}


def test_a_model_from_elsewhere_on_data_of_ours(here, study, tmp_path, capsys):
    (path,) = measured_elsewhere(study, tmp_path).values()
    assert command("rerun", path, "--output_dir", tmp_path / "again", "--data_dir", study[0] / "data") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("the same to the digit: ")


def test_each_twin_of_a_model_from_elsewhere_has_results_of_its_own(here, study, tmp_path, capsys):
    other = study[0] / "runs" / "plain" / "finetuned" / "epoch_6_clean" / "epoch_1"
    rounded = GPT2LMHeadModel.from_pretrained(other).bfloat16().float()
    rounded.save_pretrained(tmp_path / "rounded")
    twins = (other, tmp_path / "rounded")
    found = [measured_elsewhere(study, tmp_path, "--twin_model", twin)["never_planted"] for twin in twins]
    first, second = (read_record(path)["results"]["perplexity"] for path in found)
    assert first != second
    assert command("rerun", found[1], "--output_dir", tmp_path / "again", "--data_dir", study[0] / "data") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("the same to the digit: ")


def test_a_model_from_elsewhere_and_its_twin_are_found_after_a_move(here, study, tmp_path, monkeypatch, capsys):
    project, moved = tmp_path / "project", tmp_path / "moved"
    shutil.copytree(study[0] / "runs" / "plain" / "finetuned" / "epoch_6_clean" / "epoch_1", project / "twin")
    path = measured_elsewhere(study, project, "--twin_model", project / "twin")["never_planted"]
    project.rename(moved)
    path = moved / path.relative_to(project)
    words = ["rerun", path, "--output_dir", tmp_path / "again", "--data_dir", study[0] / "data"]
    monkeypatch.chdir(tmp_path)  # the model is above the record
    assert command(*words) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("the same to the digit: ")
    GPT2LMHeadModel.from_pretrained(moved / "foreign").bfloat16().float().save_pretrained(moved / "foreign")
    assert command(*words) == 2
    assert f"{moved / 'foreign'} holds other weights; restore the old ones" in capsys.readouterr().err
    shutil.rmtree(moved / "foreign")
    assert command(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"its model {project / 'foreign'} is gone" in line and "put it there again" in line


def test_a_model_with_other_weights_is_not_the_same_input(here, study, tmp_path, capsys):
    record = json.loads(here["unedited"].read_text())
    record["fingerprints"]["weights"] = "0" * 16
    place = tmp_path / "old" / "records" / f"{record_digest(record)}.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(record))
    assert command("rerun", place, "--output_dir", tmp_path / "again", "--data_dir", "data") == 1
    assert "not on the same input: weights differs" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "again")
