"""What cannot take part in the leaderboard: refused in one line before anything runs."""

import pytest
from boards import TWIN_MODEL, UNEDITED_MODEL, write_board
from small import in_process

from tinymem.errors import UserError
from tinymem.leaderboard.bench import bench_of
from tinymem.leaderboard.cases import find_cases
from tinymem.records.bundle import NAME
from tinymem.records.identity import MEASURED, NEVER_PLANTED, UNEDITED

BOARD = "experiments/leaderboard.py"
METHOD = """
from tinymem.options import option, settings

@settings
class HyperParameters:
    ratio: tuple[float, ...] = option((0.1,), "share to drop", strength=True)

def score(model, task, hp):
    raise NotImplementedError
"""


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seeds", 0, 0], "--seeds: one is given twice"),
        (["--needs", "nothing"], "--needs: only with --method_file or --submission"),
        (["--method_file", "mine.py", "--needs", "this\nand that"], "must be one line of text"),
        (["--seconds", 3], "--seconds: only with --submission"),
        (["--submission", "²=one", "--name", "mine"], "--submission ²=one: must be SEED=FOLDER"),
        (["--submission", "0=one", "7=two", "--name", "mine"], "--submission 7=two: 7 is none of --seeds 0 1 2"),
        (["--submission", "0=one", "1=two", "2=three", "--name", "!!"], "--name '!!': must have letters or digits"),
        (["--trials", 10**6], "--trials 1000000: must be <= 1000"),
        (["--submission", "0=one", "1=one", "2=one", "--name", "mine"], "one seed or one folder is named twice"),
        (
            ["--submission", "0=one", "0=one", "1=two", "2=three", "--name", "mine"],
            "one seed or one folder is named twice",
        ),
        (
            ["--submission", "0=one", "1=copied", "2=copied_again", "--name", "mine"],
            "the folders of seeds 1 and 2 hold the same weights",
        ),
        (["--submission", "0=one", "1=two", "2=three", "--name", "npo"], "--name npo: another entrant has this name"),
        (  # where it takes no part, measure.py would refuse the name after hours
            ["--models", "text", "--submission", "0=one", "1=two", "2=three", "--name", "dpo"],
            "--name dpo: another entrant has this name",
        ),
        *(
            (["--method_file", f"{name}.py"], f"--method_file {name}.py: another entrant has this name")
            for name in ("goldfish", "random_mask", "unedited", "never_planted")
        ),
        (["--method_file", "mine.py", "one/mine.py"], "--method_file one/mine.py: another entrant has this name"),
        (
            ["--method_file", "mine.py", "--submission", "0=one", "1=two", "2=three", "--name", "mine"],
            "--name mine: another entrant has this name",
        ),
    ],
)
def test_arguments(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    for name in ("copied", "copied_again"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    for name in ("goldfish", "random_mask", "unedited", "never_planted", "mine", "one/mine"):
        (tmp_path / f"{name}.py").write_text(METHOD)
    with pytest.raises(SystemExit) as ended:
        in_process(BOARD, "--small", "--models", "noise", "--dry_run", *words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_seeds_without_the_one_that_chose(tmp_path, capsys):
    words = [f"--{name}={tmp_path / name}" for name in ("output_dir", "run_dir")]
    with pytest.raises(SystemExit) as ended:  # the published results, to which it would add, chose on seed 0
        in_process(BOARD, "--small", "--models", "noise", "--seeds", 2, 1, "--dry_run", *words)
    assert ended.value.code == 2 and "--seeds: settings of noise have been chosen on seed 0" in capsys.readouterr().err
    assert not (tmp_path / "run_dir").exists()


def test_a_method_with_the_name_of_a_submission(tmp_path, capsys):
    (case,) = find_cases(["noise"], True, 3)
    submitted = {"kind": MEASURED, **bench_of(case, 0).shared_sections, "method": {"name": "mine", "weights": "0"}}
    models = {(UNEDITED, 0): [UNEDITED_MODEL], (NEVER_PLANTED, 0): [TWIN_MODEL]}
    write_board(tmp_path / "out", case, models, [(submitted, TWIN_MODEL)])
    (tmp_path / "mine.py").write_text(METHOD)
    words = ["--small", "--models", "noise", "--trials", 3, "--seeds", 0, "--dry_run", f"--run_dir={tmp_path / 'runs'}"]
    with pytest.raises(SystemExit) as ended:
        in_process(BOARD, *words, f"--output_dir={tmp_path / 'out'}", "--method_file", tmp_path / "mine.py")
    assert ended.value.code == 2 and "mine: the submission mine has results on noise" in capsys.readouterr().err


def test_the_lowest_seed_chooses_wherever_it_stands(tmp_path, capsys):
    words = [f"--{name}={tmp_path / name}" for name in ("output_dir", "run_dir")]
    in_process(BOARD, "--small", "--models", "noise", "--seeds", 2, 1, "--from_scratch", "--dry_run", *words)
    assert "trials on seed 1" in capsys.readouterr().err


def test_a_new_beginning_keeps_the_results_of_other_runs(tmp_path, capsys):
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / NAME).touch()
    words = ["--small", "--models", "noise", f"--output_dir={tmp_path}", f"--run_dir={tmp_path / 'runs'}", "--dry_run"]
    with pytest.raises(SystemExit) as ended:
        in_process(BOARD, *words, "--from_scratch")
    assert ended.value.code == 2 and "which would be lost; give another --output_dir" in capsys.readouterr().err


def test_a_model_that_cannot_go_on_does_not_stop_the_others(tmp_path, capsys):
    toml, output = tmp_path / "mine.toml", tmp_path / "out"
    toml.write_text("[one]\nnum_noise = 30\n[other]\nnum_noise = 40\n")
    find_cases([str(toml)], True, 11)[0].write(output / "one")  # of other trials
    (output / "one" / NAME).touch()
    words = [
        "--small",
        "--models",
        toml,
        "--methods",
        "npo",
        f"--run_dir={tmp_path / 'runs'}",
        f"--output_dir={output}",
    ]
    with pytest.raises(SystemExit) as ended:
        in_process(BOARD, *words, "--dry_run")
    said = capsys.readouterr()
    assert ended.value.code == 2 and f"{output}/one: its results are of other settings" in said.err
    assert "other: training" in said.err and "--num_noise=40" in said.out


@pytest.mark.parametrize("setting", ["twin = true", "seed = 5", "num_7 = 'x'"])
def test_models(tmp_path, setting):
    (tmp_path / "mine.toml").write_text(f"[mine]\n{setting}\n")
    with pytest.raises(UserError, match="mine.toml: .*(leave it out|correct it there)$"):
        find_cases([str(tmp_path / "mine.toml")], True, 12)
