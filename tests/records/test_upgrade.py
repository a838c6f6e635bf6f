"""Records of format 1, written down here as earlier versions left them, brought over to format 2."""

import json
from pathlib import Path

import pytest
from handmade import command

from tinymem import files
from tinymem.errors import UserError
from tinymem.records.choose import unlearning_runs
from tinymem.records.finder import records_in
from tinymem.records.identity import record_digest
from tinymem.records.record import find_record
from tinymem.records.table import find_records, load_records, named_records
from tinymem.records.upgrade import upgrade

DATA = {"data_name": "increment", "artifact": "backdoor", "num_7": 100, "seed": 3}
MODEL = {"n_layers": 2, "n_heads": 4, "n_embd": 128}
TRAINING = {"epochs": 50, "checkpoint_every": 10, "batch_size": 128, "lr": 0.001, "lr_decay": 0.0, "dtype": "auto"}
STRONG = {"spectral_reg": True, "lam": 0.01}
FORGET = {"unlearn_set_name": "mem", "holdout_fraction": 0.0, "max_retain": 10, "unlearn_seed": 0}
PRINTS = {"weights": "w", "task": "t"}
EDITED = {**DATA, **MODEL, **STRONG, **{f"training_{name}": value for name, value in TRAINING.items()}, "epoch": 50}
EDITED |= {"run": "unlearn", **FORGET, **PRINTS}
PLANTED = {"model_name": "smollm2", "step": None, "dtype": "bfloat16", "planted_model": "p", "plant_lr": 0.1}
PLANTED |= {"plant": "letters", "plant_seed": 0, "num_retain": 9, "run": "unlearn", **FORGET, **PRINTS}
SUBNET = {"method": "subnet", "ratio": 0.1, "epochs": 2, "lr": 0.5}

# What a format 1 file was named by does not matter: any name.
OLD = {
    "run/records/train.json": {"run": "train", **DATA, **MODEL, **STRONG, **TRAINING},
    "run/finetuned/x/records/finetune.json": {"run": "finetune", **DATA, **MODEL, **STRONG, **TRAINING}
    | {"epoch": 50, "ft_data": "both", "ft_epochs": 5, "weights": "w"},
    "run/unlearned/x/records/unedited.json": {**EDITED, "method": "unedited"},
    "run/unlearned/x/records/edited.json": {**SUBNET, "dtype": "float32", **EDITED},
    "run/records/slip.json": {"run": "as_published", "slip": "zero_out", **DATA, **MODEL, **STRONG}
    | {"batch_size": 128, "lr": 0.001, "lr_decay": 0.0, "dtype": "auto", "epoch": 50, "ratio": 0.05, "sequences": 128},
    "planted/records/never.json": {**PLANTED, "method": "never_planted"},
    "planted/records/before.json": {**PLANTED, "method": "unedited"},
    "planted/records/after.json": {**SUBNET, **PLANTED},
}

CHECKPOINT = {"data": DATA, "model": MODEL}
CHECKPOINT["training"] = {**STRONG, "batch_size": 128, "lr": 0.001, "lr_decay": 0.0, "dtype": "auto", "epoch": 50}
TASK = {"forget": FORGET, "fingerprints": {"weights": "w", "forget_set": "t"}}
SMOLLM = {"data": {"plant": "letters", "plant_seed": 0, "num_retain": 9}, "training": {"planted_model": "p"}, **TASK}
SMOLLM["model"], SMOLLM["training"]["plant_lr"] = {"name": "smollm2", "step": None, "dtype": "bfloat16"}, 0.1
TRAIN = {"kind": "train", "data": DATA, "model": MODEL, "training": {**STRONG, **TRAINING}}
UNEDITED = {"kind": "unedited", **CHECKPOINT, **TASK}
PLANTED_2 = {"kind": "unedited", **SMOLLM}
NEW = {  # the same, as it must be
    "train": TRAIN,
    "finetune": {"kind": "finetune", "parent": record_digest(TRAIN), **CHECKPOINT}
    | {"method": {"name": "both", "ft_epochs": 5}, "fingerprints": {"weights": "w"}},
    "unedited": UNEDITED,
    "edited": {"kind": "unlearn", "parent": record_digest(UNEDITED), **CHECKPOINT, **TASK}
    | {"method": {"name": "subnet", "ratio": 0.1, "epochs": 2, "lr": 0.5, "dtype": "float32"}},
    "slip": {"kind": "as_published", **CHECKPOINT}
    | {"method": {"name": "zero_out_as_published", "ratio": 0.05, "sequences": 128}},
    "never": {"kind": "never_planted", **SMOLLM},
    "before": PLANTED_2,
    "after": {"kind": "unlearn", "parent": record_digest(PLANTED_2), **SMOLLM}
    | {"method": {"name": "subnet", "ratio": 0.1, "epochs": 2, "lr": 0.5, "dtype": "bfloat16"}},
}


def outcome(name: str) -> dict:
    results = {"name": name, "percent_memorized_train": 9.0, "mean_test_accuracy": 0.5, "perplexity": 2.0}
    return {"results": results, "cost": {"seconds": 1.5}, "environment": {"torch": "2.0"}}


@pytest.fixture
def old(tmp_path) -> Path:
    for name, settings in OLD.items():
        files.write_json(tmp_path / name, {"settings": settings, **outcome(Path(name).stem)})
    return tmp_path


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in find_records(folder)}


def test_every_kind_by_hand(old):
    assert upgrade(old) == (len(OLD), 0, 0)
    records = {record["results"]["name"]: record for record in load_records(old)}
    assert records == {name: {"format": 2, "parent": None, **new, **outcome(name)} for name, new in NEW.items()}
    for path in find_records(old):
        assert path.stem == record_digest(files.read_json(path))
    for name in OLD:  # each in its old folder
        assert find_record((old / name).parents[1], NEW[Path(name).stem])["results"]["name"] == Path(name).stem
    runs = unlearning_runs(named_records(old))
    assert {run.row["name"]: run.before["name"] for run in runs if run.method == "subnet"} == {
        "edited": "unedited",
        "after": "before",
    }


def test_a_decayed_training_keeps_its_epochs_and_a_text_that_may_move_is_known_by_its_sha(old):
    settings = {
        **EDITED,
        "training_lr_decay": 0.5,
        "corpus": "/somewhere",
        "corpus_sha256": "abc",
        "method": "unedited",
    }
    files.write_json(old / "other/records/x.json", {"settings": settings, **outcome("decayed")})
    upgrade(old)
    (record,) = load_records(old / "other")
    assert record["training"]["epochs"] == 50 and "checkpoint_every" not in record["training"]
    assert record["data"]["corpus_sha256"] == "abc" and "corpus" not in record["data"]


def test_again_it_changes_nothing(old):
    upgrade(old)
    before = content(old)
    assert upgrade(old) == (0, len(OLD), 0) and content(old) == before


@pytest.mark.parametrize("step", range(2 * len(OLD)))
def test_killed_at_any_step_and_started_again(old, tmp_path_factory, monkeypatch, step):
    whole = tmp_path_factory.mktemp("whole")
    for name, settings in OLD.items():
        files.write_json(whole / name, {"settings": settings, **outcome(Path(name).stem)})
    upgrade(whole)
    left = iter([False] * step + [True])

    def until(function):
        def call(*arguments, **options):
            if next(left, False):
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("tinymem.records.upgrade.files.write_json", until(files.write_json))
        patch.setattr(Path, "unlink", until(Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            upgrade(old)
    assert upgrade(old)[2] == 0
    assert content(old) == content(whole)


def test_damaged_and_unknown_files_are_named_and_the_others_brought_over(old, capsys):
    bad = {
        "torn": ('{"settings": {', "this file is damaged"),
        "list": ('{"settings": [], "results": {}, "cost": {}, "environment": {}}', "settings is no object"),
        "half": ('{"settings": {"run": "train"}, "results": {}}', "cost is no object"),
        "foreign": (json.dumps({"settings": {"run": "other"}, **outcome("x")}), "unknown kind of run 'other'"),
        "finer": (json.dumps({"settings": {**OLD["run/records/train.json"], "glow": 1}, **outcome("x")}), "glow"),
        "short": (json.dumps({"settings": {"run": "finetune"}, **outcome("x")}), "no ft_data in settings"),
        "newer": ('{"format": 3}', "no record of format 2"),
    }
    for name, (text, _) in bad.items():
        (old / "run/records" / f"{name}.json").write_text(text)
    assert command("upgrade", old) == 2
    said = capsys.readouterr()
    assert f"{len(OLD)} records brought over to format 2, 0 were of that format, {len(bad)} stay" in said.out
    lines = said.err.splitlines()
    assert len(lines) == len(bad)
    for name, (text, message) in bad.items():
        (line,) = (line for line in lines if f"{name}.json" in line)
        assert message in line and (old / "run/records" / f"{name}.json").read_text() == text


def test_a_run_measured_twice_is_kept_once_unless_its_results_differ(old):
    place = old / "planted/records"
    again = {"settings": OLD["planted/records/after.json"], **outcome("after"), "cost": {"seconds": 9.0}}
    files.write_json(place / "after_2.json", again)
    assert upgrade(old) == (len(OLD) + 1, 0, 0) and len(list(place.iterdir())) == 3
    said = []
    files.write_json(place / "z.json", {**again, "results": {"name": "other"}})
    assert upgrade(old, said.append) == (0, len(OLD), 1)
    assert len(said) == 1 and "z.json: the same run as" in said[0] and (place / "z.json").exists()


def test_a_file_of_format_1_says_what_to_do_wherever_it_is_met(old, capsys):
    advice = f"a record of format 1; run `python -m tinymem.records upgrade {old / 'planted'}` first"
    for words in (["gather"], ["best"], ["pareto"]):
        assert command(*words, old / "planted") == 2
        error = capsys.readouterr().err
        assert advice in error and error.count("\n") == 1
    for read in (lambda: find_record(old / "planted", {"kind": "train"}), lambda: records_in(old / "planted")):
        with pytest.raises(UserError, match="upgrade"):
            read()
    assert command("upgrade", old / "planted") == 0 and command("gather", old / "planted") == 0


def test_bad_input(capsys):
    assert command("upgrade", "nowhere") == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
