"""python -m tinymem.records: one tidy table from records of all kinds, and what README says about its columns."""

import csv
import re
import shutil
from dataclasses import fields

import pandas
import pytest
import torch
from handmade import checkpoint, command, everything, outcome, unlearning
from small import ROOT, SMALL_BACKDOOR, SMALL_DATA, in_process

from tinymem import files
from tinymem.cli.records import shown_columns
from tinymem.data.settings import DataSettings
from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.errors import UserError
from tinymem.localize.registry import GROUPS, METHODS
from tinymem.metrics.registry import describe, summarized
from tinymem.records.gather import gather
from tinymem.records.table import find_records, flat_row, mixed_versions, write_table
from tinymem.regularizers.registry import REGULARIZERS


def test_one_row_a_record_with_the_columns_of_all(tmp_path):
    columns, rows = gather(everything(tmp_path))
    assert len(rows) == len(find_records(tmp_path)) == 4 * (1 + 1 + 3 + 5) + 2 + 2 * 2
    assert len(columns) == len(set(columns)) and {name for row in rows for name in row} == set(columns)
    assert columns.index("data.seed") < columns.index("percent_memorized_train") < columns.index("cost.seconds")
    alone = (row for row in rows if row["kind"] == "train" and "training.lam" not in row)
    trained = next(row for row in alone if row["model.n_layers"] == 4)
    assert trained["training.epochs"] == 2 and "method.epochs" not in trained and trained["epoch"] == 2
    slimmed = next(row for row in rows if row.get("method.name") == "slimming")
    assert slimmed["method.epochs"] == 3 and slimmed["training.epoch"] == 50 and "training.epochs" not in slimmed
    before = next(row for row in rows if row["record"].endswith(f"{slimmed['parent']}.json"))
    assert before["kind"] == "unedited" and "method.name" not in before
    tuned = next(row for row in rows if row.get("method.name") == "extra")
    assert tuned["epoch_seconds"] == "[10.0, 10.0]" and tuned["record"].startswith("plain_")
    assert all(re.fullmatch(r"tinymem \S+, torch [0-9.]+, transformers [0-9.]+", row["versions"]) for row in rows)


def test_copies_of_a_record_are_one_row_and_a_run_that_was_repeated_is_two(tmp_path):
    unlearning(
        tmp_path / "runs", checkpoint(), {("unedited",): outcome(90.0), ("durable", ("ratio", 0.1)): outcome(10.0)}
    )
    shutil.copytree(tmp_path / "runs", tmp_path / "runs" / "the_copy")
    assert [row["record"].count("copy") for row in gather(tmp_path / "runs")[1]] == [0, 0]
    copied = max(
        (tmp_path / "runs" / "the_copy").rglob("records/*.json"), key=lambda path: "durable" in path.read_text()
    )
    files.write_json(copied, {**files.read_json(copied), "cost": {"seconds": 99.0, "peak_memory_gb": None}})
    assert [row["kind"] for row in gather(tmp_path / "runs")[1]] == ["unedited", "unlearn", "unlearn"]


def test_a_name_in_several_parts_of_a_record_is_a_column_each():
    parts = {"training": {"epoch": 5, "lr": 1}, "method": {"lr": 2}, "results": {"epoch": 6, "lr": 3}}
    row = flat_row({"kind": "unlearn", **parts, "cost": {"seconds": 4}, "environment": {"torch": "2"}})
    assert row == {
        "kind": "unlearn", "parent": None, "training.epoch": 5, "training.lr": 1, "method.lr": 2, "epoch": 6, "lr": 3,
        "cost.seconds": 4, "environment.torch": "2",
    }  # fmt: skip


def test_csv_and_parquet_hold_the_same_table(tmp_path, capsys):
    everything(tmp_path / "runs")
    tables = []
    for name in ("table.csv", "table.parquet"):
        assert command("gather", tmp_path / "runs", "--output", tmp_path / name) == 0
        read = pandas.read_csv if name.endswith("csv") else pandas.read_parquet
        tables.append(read(tmp_path / name))
    printed = capsys.readouterr().out
    assert "46 records" in printed and "6 are not shown" in printed
    text, binary = tables
    assert list(text) == list(binary) and len(text) == len(binary) == 46
    assert sorted(binary["model.step"].dropna()) == [36000, 36000, 143000, 143000]
    for name in text:
        assert text[name].isna().equals(binary[name].isna())
        assert text[name].dropna().tolist() == binary[name].dropna().tolist()


def test_a_column_of_several_types_becomes_text_in_parquet(tmp_path):
    rows = [{"step": 1, "x": 1}, {"step": "main", "x": 2.5}, {"x": None}]
    table = pandas.read_parquet(write_table(tmp_path / "t.parquet", rows))
    assert (
        table["step"].tolist()[:2] == ["1", "main"] and table["step"].isna()[2] and table["x"].tolist()[:2] == [1, 2.5]
    )


@pytest.mark.parametrize("name", ["gather", "best", "pareto"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_lists_are_json_in_every_table(name, kind, tmp_path):
    runs = {("unedited",): outcome(90.0), ("obs", ("layers", ("a", "b"))): outcome(1.0)}
    unlearning(tmp_path / "runs", checkpoint(), runs)
    path = tmp_path / f"table.{kind}"
    assert command(name, tmp_path / "runs", "--output", path) == 0
    table = (pandas.read_csv if kind == "csv" else pandas.read_parquet)(path)
    assert table["method.layers"].dropna().tolist() == ['["a", "b"]']


def test_best_and_pareto_print_and_write_their_tables(tmp_path, capsys):
    everything(tmp_path / "runs")
    assert command("best", tmp_path / "runs", "--output", tmp_path / "best.csv") == 0
    printed = capsys.readouterr().out
    assert "increment, backdoor, 4 layers, epoch 50" in printed and "80.5 ± 6.4" in printed
    with open(tmp_path / "best.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 + 3 * 2 and {row["n"] for row in rows} == {"1", "2"}
    assert command("pareto", tmp_path / "runs", "--output", tmp_path / "front.parquet") == 0
    assert "pythia-160m, step 36000" in capsys.readouterr().out
    front = pandas.read_parquet(tmp_path / "front.parquet")
    assert front["method.name"].value_counts().to_dict() == {"unedited": 7, "slimming": 8, "durable": 4, "obs": 3}
    assert command("best", tmp_path / "runs", "--max_perplexity_rise", 4) == 0
    assert "perplexity rose by more than 4 % on average in every setting of obs" in capsys.readouterr().out


def test_a_folder_of_records_may_be_given_itself(tmp_path, monkeypatch):
    unlearning(tmp_path, checkpoint(), {("unedited",): outcome(9.0)})
    monkeypatch.chdir(tmp_path / "records")
    for folder in (tmp_path, tmp_path / "records", f"{tmp_path}/records/", "."):
        assert len(find_records(folder)) == len(gather(folder)[1]) == 1


def test_records_of_mixed_versions_are_said_and_kept_apart(tmp_path, capsys):
    unlearning(tmp_path, checkpoint(), {("unedited",): outcome(9.0)})
    (path,) = find_records(tmp_path)
    record = files.read_json(path)
    for number, version in enumerate(("9.9", None)):
        record["environment"]["transformers"] = version
        files.write_json(path.with_name(f"other{number}.json"), record)
    assert command("gather", tmp_path) == command("best", tmp_path) == 0
    told = capsys.readouterr()
    assert told.err.count("records of 3 versions, kept apart") == 2 and "transformers 9.9" in told.err
    assert told.out.count("versions tinymem") == 3  # three tables of `best`, each with its versions in the title
    assert mixed_versions(["a", "a"]) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gather", "nowhere"], "nowhere: no such folder"),
        (["best", "empty"], "empty: no records in this folder or below it"),
        (["pareto", "empty"], "empty: no records"),
        (["gather", "runs", "--output", "table.txt"], "table.txt: the name must end in .csv or .parquet"),
        (["best", "runs", "--max_perplexity_rise", "nan"], "--max_perplexity_rise nan: must be a number"),
        (["best", "runs", "--max_perplexity_rise", "-5"], "--max_perplexity_rise -5: must be a number of percent >= 0"),
        (["best", "trained"], "trained: none of its records (1) is an unlearning run that can be compared"),
        (["best"], "the following arguments are required: DIR"),
        (["worst", "runs"], "invalid choice: 'worst'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    unlearning(tmp_path / "runs", checkpoint(), {("unedited",): outcome(9.0)})
    (path,) = find_records("runs")
    record = files.read_json(path)
    record["kind"] = "train"
    files.write_json("trained/records/x.json", record)
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    ['{"format": 2, ', "[]", '{"format": 2, "kind": "train", "results": {}, "cost": {}}', "\xff", '{"settings": {}}'],
)
@pytest.mark.parametrize("name", ["gather", "best"])
def test_a_damaged_record_is_named(tmp_path, capsys, content, name):
    unlearning(tmp_path, checkpoint(), {("unedited",): outcome(9.0)})
    (tmp_path / "records" / "broken.json").write_bytes(content.encode("latin-1"))
    assert command(name, tmp_path) == 2
    assert "broken.json" in capsys.readouterr().err


def test_parts_of_a_record_must_be_objects(tmp_path):
    whole = {"format": 2, "kind": "train", "parent": None, "results": {}, "cost": {}, "environment": {}}
    for change, problem in [
        ({"cost": []}, "cost is no object"),
        ({"data": 3}, "data is no object"),
        ({"kind": "lost"}, "kind is none of train"),
        ({"parent": 3}, "parent is no digest"),
        ({"format": 3}, "no record of format 2"),
        ({"prompts": {}}, "unknown section prompts"),
    ]:
        files.write_json(tmp_path / "records" / "x.json", whole | change)
        with pytest.raises(UserError, match=f"x.json.*{problem}"):
            gather(tmp_path)


def test_files_that_are_no_records_are_left_alone(tmp_path):
    unlearning(tmp_path, checkpoint(), {("unedited",): outcome(9.0)})
    for name in ("failed/x.json", "records/.x.json.0.tmp", ".cache/records/x.json", "records/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert len(gather(tmp_path)[1]) == 1


def documented() -> set[str]:
    """The columns in the first table of results/README.md."""
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    table = text.split("## Columns")[1].split("`best` and `pareto` add")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)]
    assert len(names) == len(set(names))
    return set(names)


@pytest.mark.slow
def test_every_column_of_real_records_is_documented_and_no_other(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    sizes = {**SMALL_DATA, **SMALL_BACKDOOR, "num_7": 120, "n_embd": 16, "n_heads": 2, "n_layers": 1}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    flags += ["--spectral_reg", "--truncate_loss", "--example_tied_dropout", "--l1_reg=1e-6", "--epochs=1"]
    flags += ["--goldfish", "--memorization_sinks"]
    common = [f"--data_dir={tmp_path / 'data'}", "--device=cpu"]
    in_process("memorization_in_toy_models.py", *flags, f"--output_dir={tmp_path / 'run'}", *common)
    common += ["--model_path", tmp_path / "run" / "epoch_1"]
    in_process("ft_toy_model.py", *common, "--ft_data", "clean", "--ft_epochs=1")
    words = "--unlearn_set_name noise --holdout_fraction 0.2 --epochs 1 --ig_steps 1 --num_grads 2 --ratio 0.001"
    methods = "integrated_gradients slimming greedy obs balanced_subnet".split()
    script = "src/localize/localize_memorization.py"
    in_process(script, *common, "--localization_method", *methods, *words.split(), "--forget_term", "npo")
    quick = "--unlearn_set_name noise --holdout_fraction 0.2 --steps 1 --kl_budget 0.1 --update_mask durable 0.1"
    in_process(script, *common, "--localization_method", "objective", *quick.split())
    quick = "--unlearn_set_name noise --holdout_fraction 0.2 --steps 1 --lora_rank 1 --lora_alpha 3 --lora_targets c_fc"
    in_process(script, *common, "--localization_method", "npo", *quick.split())
    quick = "--unlearn_set_name noise --holdout_fraction 0.2 --forget test --retain all --ratio 0.01"
    in_process(script, *common, "--localization_method", "durable", *quick.split())
    quick = "--unlearn_set_name noise --holdout_fraction 0.2 --layers last --factor_sequences 200"
    text = write_token_set(tmp_path / "text.safetensors", TokenSet(torch.arange(9000).view(-1, 30) % 10, {}))
    quick = [*quick.split(), "--kfade.kl_budget", 0.1, "--kfac.factor_data", text]
    in_process(script, *common, "--localization_method", "kfac", "kfade", "ssd", *quick)
    in_process("experiments/as_published.py", *common)
    columns, rows = gather(tmp_path)
    unlearned = 5 + len(GROUPS["objective"]) + 1 + 1 + 3 + 1 + 3  # kfac and ssd have three strengths
    assert [row["kind"] for row in rows].count("unlearn") == unlearned and len(rows) == 5 + unlearned

    metrics = {line.name for line in summarized()}
    others = {name for name in columns if describe(name) is None}
    text_only = {f"data.{field.name}" for field in fields(DataSettings)} - set(columns)
    production_only = {"model.name", "model.step", "model.dtype", "data.memorized_data", "data.random_data"}
    production_only |= {"data.num_retain", "attack.name"}
    # Zero-Out as published and the differences of the study's code cannot be repeated on this model
    memorized_only = {"accuracy_lost", "method.sequences", "method.differences", "percent_memorized_left_out"}
    memorized_only |= {"forgotten", "retained", "perplexity_rise_percent"}
    assert others | text_only | production_only | memorized_only | metrics == documented()
    for section, settings in [("method", [method.hyper_parameters for method in METHODS.values()]),
                              ("training", [entry.settings for entry in REGULARIZERS])]:  # fmt: skip
        assert {f"{section}.{field.name}" for each in settings for field in fields(each)} <= documented()


def test_what_differs_between_rows_is_shown_first(tmp_path, capsys):
    """Two runs that differ in a setting other than the strength would look the same."""
    runs = {("npo", ("steps", 20), ("lr", lr), ("beta", 0.1), ("batch_size", 32)): outcome(50.0) for lr in (1e-4, 1e-3)}
    unlearning(tmp_path, checkpoint(), {("unedited",): outcome(90.0), **runs, ("obs", ("ratio", 0.1)): outcome(1.0)})
    columns, rows = gather(tmp_path)
    shown = shown_columns(columns, rows)
    assert shown[:5] == ["kind", "method.name", "method.ratio", "method.steps", "method.lr"]
    assert "method.beta" not in shown and "method.batch_size" not in shown  # the same in every run of the method
    assert shown.index("percent_memorized_train") < shown.index("data.data_name")  # of which there is one
    assert command("gather", tmp_path) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["kind", "method", "ratio", "steps", "lr"] and max(map(len, lines[:4])) <= 120
    many = {f"setting_{i}": i for i in range(9)}
    more = [("npo", *many.items()), ("npo", *((name, value + 1) for name, value in many.items()))]
    unlearning(tmp_path / "many", checkpoint(), {key: outcome(5.0) for key in more})
    shown = shown_columns(*gather(tmp_path / "many"))
    place = shown.index("percent_memorized_train")
    assert sum(name.startswith("method.setting") for name in shown[:place]) == 6
    assert sum(name.startswith("method.setting") for name in shown) == 9


def test_a_table_replaces_only_tables(tmp_path, monkeypatch, capsys):
    folder = everything(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "a.parquet"):
        for words in (["gather"], ["best"], ["pareto"], ["gather"]):
            assert command(*words, folder, "--output", name) == 0
    pandas.DataFrame({"text": ["mine"]}).to_parquet("mine.parquet")
    pandas.DataFrame({"text": ["mine"]}).to_csv("mine.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\x00")
    (tmp_path / "empty.csv").touch()
    capsys.readouterr()
    for name in ("mine.parquet", "mine.csv", "bytes.csv"):
        before = (tmp_path / name).read_bytes()
        assert command("gather", folder, "--output", name) == 2 and (tmp_path / name).read_bytes() == before
        assert f"--output {name}: exists, and is no table of records" in capsys.readouterr().err
    assert command("gather", folder, "--output", "empty.csv") == 0
