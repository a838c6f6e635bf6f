"""What cannot take part in the leaderboard: refused in one line before anything runs."""

import pytest
from small import in_process

from tinymem.errors import UserError
from tinymem.leaderboard.cases import find_cases
from tinymem.records.bundle import NAME

BOARD = "experiments/leaderboard.py"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seeds", 0, 0], "--seeds: one is given twice"),
        (["--needs", "nothing"], "--needs: only with --method_file or --submission"),
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
    ],
)
def test_arguments(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    for name in ("copied", "copied_again"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(SystemExit) as ended:
        in_process(BOARD, "--small", "--models", "noise", "--dry_run", *words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_seeds_without_the_one_that_chose(tmp_path, capsys):
    words = [f"--{name}={tmp_path / name}" for name in ("output_dir", "run_dir")]
    with pytest.raises(SystemExit) as ended:  # the published results, to which it would add, chose on seed 0
        in_process(BOARD, "--small", "--models", "noise", "--seeds", 2, 1, "--dry_run", *words)
    assert ended.value.code == 2 and "--seeds: settings of noise have been chosen on seed 0" in capsys.readouterr().err


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
