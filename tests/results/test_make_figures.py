"""results/make_figures.py end to end, in this process."""

import pytest
from handmade import TEXT, checkpoint, everything, outcome, trained, training, unlearning
from small import in_process

from tinymem import files

NAMES = ("training", "regularizers", "finetuning", "unlearning_boxes", "pythia")
NAMES += tuple(f"unlearning_bars_{number}" for number in range(1, 6))
NAMES += tuple(
    f"unlearning_{kind}_{data}" for kind in ("scatter", "time") for data in ("increment_backdoor", "wiki_fast_noise")
)


def draw(*words: object) -> int:
    try:
        in_process("results/make_figures.py", *words)
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.slow
def test_every_figure_is_written_as_pdf_and_png(tmp_path, capsys):
    assert draw(everything(tmp_path / "runs"), "--output_dir", tmp_path / "figures") == 0
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert written == sorted(f"{name}.{kind}" for name in NAMES for kind in ("pdf", "png"))
    assert all(path.stat().st_size > 5000 for path in (tmp_path / "figures").iterdir())
    printed = capsys.readouterr()
    assert sorted(line.rsplit("/", 1)[1] for line in printed.out.splitlines()) == written and not printed.err


def test_figures_without_records_are_named_with_the_reason(tmp_path, capsys):
    unlearning(tmp_path, checkpoint(), {("unedited",): outcome(9.0), ("obs",): outcome(1.0)})
    assert draw(tmp_path) == 0
    names = {path.name for path in (tmp_path / "figures").iterdir() if path.suffix == ".png"}
    kinds = ("bars", "boxes", "scatter", "time")
    assert names == {f"unlearning_{kind}.png" for kind in kinds}
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["training", "regularizers", "finetuning", "pythia"]
    assert f"not drawn, {tmp_path} has no training runs without a regularizer" in lines[0]


@pytest.mark.parametrize("runs", [
    {("unedited",): outcome(9.0)},
    {("unedited",): outcome(9.0, None, 20.0), ("obs",): outcome(1.0, None, 50.0)},  # above --max_perplexity_rise
])  # fmt: skip
def test_without_edits_to_compare_the_other_figures_are_drawn(runs, tmp_path, capsys):
    unlearning(tmp_path, checkpoint(**(TEXT if len(runs) > 1 else {})), runs)
    assert draw(tmp_path) == 0
    names = {path.name for path in (tmp_path / "figures").iterdir() if path.suffix == ".png"}
    assert names == {"unlearning_scatter.png", "unlearning_time.png"}
    lines = capsys.readouterr().err.splitlines()
    reasons = [line for line in lines if line.startswith(("unlearning_bars: ", "unlearning_boxes: "))]
    assert len(reasons) == 2 and all("has no edits beside a record of their unedited model" in line for line in reasons)


@pytest.mark.parametrize("name, value, message", [
    ("epoch", "1", "epoch '1': must be a whole number"), ("epoch", None, "epoch None: must be a whole number"),
    ("epoch", -1, "is damaged (epoch -1: -1 is below 0)"), ("train_loss", [], "(epoch 1: train_loss is no number)"),
    ("mean_test_accuracy", "high", "is damaged (epoch 1: mean_test_accuracy is no number)"),
    ("perplexity", 0, "is damaged (epoch 1: perplexity 0 is not between 1 and inf)"),
])  # fmt: skip
def test_a_wrong_value_in_the_metrics_of_a_training_is_one_line(name, value, message, tmp_path, capsys):
    rows = [{"epoch": epoch, **outcome(40.0)} for epoch in (1, 2)]
    training(tmp_path, trained(), rows)
    files.write_json(tmp_path / "metrics.json", [{**rows[0], name: value}, rows[1]])
    assert draw(tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'metrics.json'}: " in line and message in line


@pytest.mark.parametrize("section, name, value", [
    ("training", "epochs", "2"), ("model", "n_layers", "two"), ("results", "epoch_seconds", ["1"]),
])  # fmt: skip
def test_a_wrong_number_in_the_record_of_a_training_is_one_line(section, name, value, tmp_path, capsys):
    training(tmp_path, trained(), [{"epoch": 2, **outcome(40.0)}])
    (path,) = tmp_path.glob("records/*.json")
    record = files.read_json(path)
    record[section][name] = value
    path.unlink()
    path = files.write_json(path.with_name("edited.json"), record)
    assert draw(tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: {section}.{name} {value!r}: must be " in line


def test_bad_input_exits_2_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    other = {"format": 2, "kind": "as_published", "results": {}, "cost": {}, "environment": {}}
    files.write_json(tmp_path / "other" / "records" / "x.json", other)
    training(tmp_path / "broken", trained(epochs=1), [{"epoch": 1}])
    files.write_json(tmp_path / "broken" / "metrics.json", {"epoch": 1})
    for name, message, *more in (
        ("empty", "no records in this folder"),
        ("nowhere", "no such folder"),
        ("other", "none of its 1 records can be drawn"),
        ("broken", "metrics.json: rows {'epoch': 1}: must be a list"),
        ("other", "--max_perplexity_rise -1: must be a number of percent >= 0", "--max_perplexity_rise=-1"),
    ):
        assert draw(tmp_path / name, *more) == 2
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1] and "Traceback" not in error
        assert not (tmp_path / name / "figures").exists()
