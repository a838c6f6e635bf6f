"""The comparison of mitigations from a leaderboard's evidence, written by hand: rows, figures, limits, bad input."""

import csv
import shutil

import pytest
from boards import TWIN_MODEL, UNEDITED_MODEL, Model, write_board
from small import ROOT, in_process

from tinymem.leaderboard.bench import bench_of
from tinymem.leaderboard.cases import find_cases
from tinymem.records.bundle import NAME
from tinymem.records.identity import MEASURED, NEVER_PLANTED, UNEDITED

SCRIPT = "experiments/basic_train/compare_mitigations.py"
(NOISE,) = find_cases(["noise"], True, 3)
MODELS = {
    (UNEDITED, 0): [UNEDITED_MODEL] * 2,
    (NEVER_PLANTED, 0): [TWIN_MODEL] * 2,
    ("random_mask", 0): [Model(4, 3, 0.895, 4)] * 2,
    ("npo", 0): [Model(2, 1, 0.895, 2), Model(1, 1, 0.88, 2)],
    ("npo", 1): [Model(0, 0, 0.87, 2)] * 2,  # forgets most, at three points of accuracy
    ("obs", 0): [Model(2, 2, 0.87, 3, seconds=0.5)] * 2,
}


def compare(folder, output, *flags: object) -> dict[str, dict[str, str]]:
    """Runs the script; returns the rows of the noise model's table by method, in their order."""
    in_process(SCRIPT, "--leaderboard_dir", folder, "--output_dir", output, *flags)
    with open(output / "noise" / "table.csv", newline="", encoding="utf-8") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return write_board(tmp_path_factory.mktemp("board"), NOISE, MODELS)


@pytest.fixture(scope="module")
def rows(board, tmp_path_factory):
    return compare(board, tmp_path_factory.mktemp("compared"))


def figure(row, name: str) -> list[float]:
    return [float(row[column]) for column in (name, f"{name}_low", f"{name}_high")]


def test_rows_stand_in_families_with_the_models_without_mitigation_first(rows):
    families = {name: row["family"] for name, row in rows.items()}
    assert list(families.items()) == [
        ("unedited", "no mitigation"),
        ("never-planted twin", "no mitigation"),
        ("random_mask", "controls"),
        ("obs", "weights"),
        ("npo", "objectives"),
    ]


def test_figures_are_means_over_seeds_with_intervals(rows):
    npo = rows["npo"]
    exact, low, high = figure(npo, "percent_memorized_held_out")
    assert exact == 37.5 and low < 25 and high > 50  # 2 and 1 of 4; both seeds and sequences are resampled
    assert float(npo["percent_memorized_shown"]) == 25 and float(npo["mean_test_accuracy"]) == pytest.approx(0.8875)
    assert figure(npo, "utility_lost") == pytest.approx([1.25, 0.5, 2.0], abs=1e-4)  # paired: no sequence differs
    assert float(npo["attack_excess"]) == 25 and npo["attack"] == "quantize"  # 2 of 4, of the twin 1
    assert float(rows["never-planted twin"]["utility_lost"]) == pytest.approx(10) and float(npo["seconds"]) == 2
    assert float(rows["unedited"]["utility_lost"]) == 0 and rows["unedited"]["seconds"] == ""


def test_the_limit_decides_which_trial_is_shown(board, rows, tmp_path):
    assert rows["obs"]["note"] == "no trial within 1 point of accuracy" and rows["obs"]["utility_lost"] == ""
    wider = compare(board, tmp_path, "--limit", 5)
    assert float(wider["npo"]["percent_memorized_held_out"]) == 0 and float(wider["obs"]["seconds"]) == 0.5
    assert wider["npo"]["setting"] != rows["npo"]["setting"] and not wider["obs"]["note"]
    text = (tmp_path / "noise" / "table.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| weights | obs |")]
    assert "| 50.0 (" in line and "| 3.0 (3.0 to 3.0) | 50.0 (" in line and " quantize | 0.5 |" in line
    assert "within 5 points of accuracy" in text and "Seeds 0, 1;" in text and "Not run: " in text and "kfac" in text
    assert all((tmp_path / "noise" / f"figure.{kind}").stat().st_size > 5000 for kind in ("png", "pdf"))


def test_where_nothing_is_within_the_limit_every_row_says_so(tmp_path):
    few = {name: MODELS[name] for name in [(UNEDITED, 0), (NEVER_PLANTED, 0), ("obs", 0)]}
    found = compare(write_board(tmp_path / "board", NOISE, few), tmp_path / "out", "--models", "noise")
    assert [row["note"] for row in found.values()] == ["", "", "no trial within 1 point of accuracy"]
    assert (tmp_path / "out" / "noise" / "figure.png").exists()


def test_a_users_name_stays_in_its_cell(tmp_path):
    method = {"name": "a | <b>", "weights": "0"}
    theirs = [
        ({"kind": MEASURED, **bench_of(NOISE, s).shared_sections, "method": method}, Model(2, 2, 0.9, 2))
        for s in (0, 1)
    ]
    few = {name: MODELS[name] for name in [(UNEDITED, 0), (NEVER_PLANTED, 0)]}
    compare(write_board(tmp_path / "board", NOISE, few, theirs), tmp_path / "out")
    assert r" | a \| &lt;b> | as submitted |" in (tmp_path / "out" / "noise" / "table.md").read_text()


def test_text_is_judged_by_perplexity(tmp_path):
    (case,) = find_cases(["text"], True, 3)
    changed = {(UNEDITED, 0): Model(4, 4, 20.0, 4), (NEVER_PLANTED, 0): Model(0, 0, 19.0, 1)}
    changed |= {("npo", 0): Model(1, 1, 20.2, 1)}
    folder = write_board(tmp_path / "board", case, {name: [model] * 2 for name, model in changed.items()})
    in_process(SCRIPT, "--leaderboard_dir", folder, "--output_dir", tmp_path)
    with open(tmp_path / "text" / "table.csv", newline="", encoding="utf-8") as file:
        *_, npo = csv.DictReader(file)
    assert float(npo["perplexity"]) == pytest.approx(20.2) and float(npo["utility_lost"]) == pytest.approx(1, abs=1e-4)
    assert "| 20.200 | 1.0 (1.0 to 1.0) |" in (tmp_path / "text" / "table.md").read_text()


def damaged(board, folder, name: str, content: bytes):
    """A copy of a board with a damaged file."""
    shutil.copytree(board, folder)
    (folder / "noise" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--models", "noisy"], ["--models noisy", "noise"]),
        (["--limit", "2"], ["--limit 2: must be 1 or 5 (points of accuracy) for noise"]),
        (["--leaderboard_dir", "nowhere"], ["--leaderboard_dir nowhere"]),
        (NAME, ["noise/records.jsonl.gz"]),
        ("values.safetensors", ["noise/values.safetensors", "damaged"]),
        ("examples.json", ["noise/examples.json", "damaged"]),
        ("case.json", ["noise/case.json", "damaged"]),
    ],
)
def test_bad_input_is_one_line_that_says_what_makes_evidence(flags, words, board, tmp_path, capsys):
    if isinstance(flags, str):
        board, flags = damaged(board, tmp_path / "board", flags, b"x"), []
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, "--leaderboard_dir", board, "--output_dir", tmp_path / "out", *flags)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and all(word in said for word in words)
    assert "experiments/leaderboard.py" in said or "--limit" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, words", [("no twin", "of no seed both"), ("no values", "no values for percent_memorized")]
)
def test_evidence_without_models_to_compare_with_is_one_line(change, words, tmp_path, capsys):
    models = {name: some for name, some in MODELS.items() if change != "no twin" or name[0] != NEVER_PLANTED}
    folder = write_board(tmp_path / "board", NOISE, models)
    if change == "no values":
        from safetensors.torch import save_file

        save_file({}, folder / "noise" / "values.safetensors")
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, "--leaderboard_dir", folder, "--output_dir", tmp_path / "out")
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and words in said and "experiments/leaderboard.py" in said


def test_the_committed_table_has_the_rows_of_the_committed_leaderboard():
    def read(place: str) -> list[dict[str, str]]:
        return list(csv.DictReader((ROOT / "results" / place).read_text(encoding="utf-8").splitlines()))

    board = {r["method"]: r for r in read("leaderboard/leaderboard.csv") if (r["case"], r["limit"]) == ("noise", "1.0")}
    table = {row["method"]: row for row in read("compare_mitigations/noise/table.csv")}
    shown = {name for name, row in board.items() if row["note"] != "not run"}
    assert set(table) == shown and len(table) > 40
    for name, row in table.items():
        for column in ("setting", "note", "percent_memorized_held_out", "mean_test_accuracy_low", "score_high"):
            assert row[column] == board[name][column], (name, column)
