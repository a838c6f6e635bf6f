"""The sweep scripts: help, plans and refusals without work; one real sweep, killed and not."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small import ROOT, in_process, script, start

from tinymem.records.identity import identity_of
from tinymem.records.table import load_records

HP_SWEEP, NERSC = "src/localize/localize_hp_sweep.py", "experiments/parsl_localize_nersc.py"
SCRIPTS = ["experiments/basic_train/train_sweep.py", "experiments/basic_train/regularizer_sweep.py"]
SCRIPTS += ["experiments/ft/ft_sweep.py", "experiments/parsl_localize.py"]


@pytest.fixture
def run_script(monkeypatch, capsys):
    """run_script(script, *flags): exit code, stdout and stderr of a script run in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))

    def run(*words) -> tuple:
        code = 0
        try:
            in_process(*words)
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", [HP_SWEEP, NERSC, *SCRIPTS])
def test_help_is_instant(name, tmp_path_factory):
    # Compiled once, as for a user: machines that test often forbid Python to keep what it compiles.
    compiled = tmp_path_factory.getbasetemp() / "compiled"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(compiled)
    watch = (
        f"import sys, atexit, time, runpy; sys.argv = [{name!r}, '--help']; sys.path.insert(0, 'experiments')\n"
        "heavy = ('torch.nn', 'numpy.linalg', 'parsl', 'transformers')\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], time.process_time() < 0.8))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    for _ in range(3):  # the first may have to compile
        done = subprocess.run([sys.executable, "-c", watch], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.stdout.splitlines()[-1] == "[] True":
            break
    assert done.stdout.splitlines()[-1] == "[] True", done.stdout + done.stderr
    assert all(flag in done.stdout for flag in ("--small", "--site", "--dry_run", "--limit", "--retries"))


@pytest.mark.parametrize(
    "name, small, commands, runs",
    [
        (SCRIPTS[0], 4, "312", 312),
        (SCRIPTS[1], 16, "2496", 2496),
        (SCRIPTS[2], 16, "4056", 4056),
        (NERSC, 22, "384", 2664),
    ],
)
def test_plans(run_script, tmp_path, name, small, commands, runs):
    folders = ["--output_dir", tmp_path / "out", "--data_dir", tmp_path / "data", "--dry_run"]
    code, output, _ = run_script(name, *folders, "--small")
    lines = output.splitlines()
    assert code == 0 and len(lines) == small + 2 and lines[-1].startswith(f"{small} commands for ")
    assert all(line.startswith("python ") and (ROOT / line.split()[1]).exists() for line in lines[:-2])
    code, output, _ = run_script(name, *folders, "--limit", 1)
    assert code == 0 and f"of the grid's {runs} runs 0 are done" in output
    assert output.splitlines()[2].startswith("1 command for ")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_beside_a_model_that_came_with_the_repository(run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ROOT / "results" / "models" / "increment_backdoor_2layers"
    words = ["--model_path", model, "--small", "--methods", "durable", "--data_dir", tmp_path, "--dry_run"]
    code, output, _ = run_script(HP_SWEEP, *words)
    expected = Path("runs").absolute() / model.name / "unlearned" / model.name
    assert code == 0 and f"--output_dir {expected} " in output


def test_only(run_script, tmp_path):
    words = [SCRIPTS[0], "--output_dir", tmp_path, "--dry_run", "--only"]
    assert run_script(*words, "n_layers=2", "data_name=mult", "seed=1")[1].splitlines()[-1].startswith("12 commands")
    code, _, errors = run_script(*words, "layers=2")
    assert code == 2 and "--only layers=2: must be NAME=VALUE" in errors
    code, _, errors = run_script(*words, "n_layers=3")
    assert code == 2 and "--only n_layers=3: no such model; among those left, n_layers is 2, 4, 8, 16\n" in errors
    code, _, errors = run_script(*words, "n_layers=2", "n_layers=4")
    assert code == 2 and "--only n_layers=4: no such model; among those left, n_layers is 2\n" in errors


@pytest.mark.parametrize(
    "words, message",
    [
        ([HP_SWEEP], "--model_path, --model_name: give exactly one"),
        ([HP_SWEEP, "--model_path", "{tmp}"], "not a TinyMem checkpoint"),
        ([HP_SWEEP, "--model_path", "{tmp}", "--dtype", "bfloat16"], "--dtype: only with --model_name"),
        ([HP_SWEEP, "--model_path", "{tmp}", "--whole_node"], "--whole_node: only with --model_name"),
        ([HP_SWEEP, "--model_name", "{tmp}"], "--memorized: give a file of sequences"),
        ([HP_SWEEP, "--model_name", "{tmp}", "--memorized", "{tmp}/m.pt"], "--memorized {tmp}/m.pt: no such file"),
        (
            [HP_SWEEP, "--model_name", "{tmp}", "--memorized", "{tmp}/file", "--random", "{tmp}/r.pt"],
            "--random {tmp}/r.pt: no such file",
        ),
        ([NERSC, "--small", "--models", "2.8b"], "--models: not together with --small"),
        ([HP_SWEEP, "--model_path", "{tmp}", "--methods", "magic"], "--methods magic: must be one of zero_out"),
        ([HP_SWEEP, "--model_path", "{tmp}", "--ratios", "1.5"], "--ratios 1.5: must be in (0.0, 1.0)"),
        ([HP_SWEEP, "--model_path", "{tmp}", "--methods", "npo", "--ratios", "0.1"], "--ratios: npo has no ratio"),
        ([HP_SWEEP, "--model_path", "{tmp}", "--site", "summit"], "--site summit: must be one of local"),
        ([HP_SWEEP, "--model_path", "{tmp}", "--site", "polaris"], "--site polaris: needs your account"),
        ([HP_SWEEP, "--model_path", "{tmp}", "--limit", "0"], "'0' is not a whole number >= 1"),
        ([HP_SWEEP, "--model_path", "{tmp}", "--retries", "-1"], "--retries"),
        (
            [NERSC, "--memorized_dir", "{tmp}", "--output_dir", "{tmp}/out"],
            "pythia-2.8b-deduped-v0.safetensors: not there",
        ),
        ([SCRIPTS[0], "--small", "--output_dir", "{tmp}/file"], "{tmp}/file: cannot make this folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_before_work(run_script, tmp_path, words, message):
    (tmp_path / "file").write_text("in the way")
    code, output, errors = run_script(*(word.replace("{tmp}", str(tmp_path)) for word in words))
    assert (code, output, errors.count("\n")) == (2, "", 1), errors
    assert message.replace("{tmp}", str(tmp_path)) in errors
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def checkpoint(memorizing_backdoor, tmp_path):
    return shutil.copytree(memorizing_backdoor.checkpoint, tmp_path / "run" / "epoch_6")


def totals(output: str) -> list[str]:
    """The last line of the sweep's table of counts."""
    return next(words for words in map(str.split, output.splitlines()) if words[:1] == ["all"])


@pytest.mark.slow
def test_what_a_limit_leaves_is_missing(run_script, checkpoint, tmp_path):
    words = [HP_SWEEP, "--model_path", checkpoint, "--small", "--methods", "durable", "activations", "--ratios", 0.1]
    words += ["--data_dir", tmp_path / "data", "--device", "cpu", "--output_dir", tmp_path / "out", "--limit", 1]
    code, output, _ = run_script(*words)
    assert code == 1 and totals(output) == ["all", "2", "1", "0", "0", "1"]
    assert run_script(*words)[0] == 0
    assert not list((tmp_path / "out" / ".locks").iterdir())


def outcomes(folder) -> list:
    """What must be equal however often a sweep was killed: identity and results of every record."""
    return [(identity_of(record), record["results"]) for record in load_records(folder)]


@pytest.mark.slow
def test_a_real_sweep_killed_and_not(checkpoint, tmp_path, wait_for, processes_with):
    words = [HP_SWEEP, "--model_path", checkpoint, "--small", "--methods", "random_greedy"]
    words += ["--ratios", 0.05, 0.1, 0.15, 0.2, 0.25, "--data_dir", tmp_path / "data", "--device", "cpu"]
    whole = script(*words, "--output_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert totals(whole.stdout) == ["all", "5", "5", "0", "0", "0"]
    assert "\nbest: " in whole.stdout and whole.stdout.index("records: ") < whole.stdout.index("\nbest: ")

    out = tmp_path / "killed"
    process = start(*words, "--output_dir", out)
    wait_for(lambda: any(r.get("method", {}).get("name") == "balanced_subnet" for r in load_records(out)), 120)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not processes_with(str(out)))
    assert len(load_records(out)) < 6
    again = script(*words, "--output_dir", out)
    assert again.returncode == 0, again.stderr
    assert outcomes(out) == outcomes(tmp_path / "whole") and len(outcomes(out)) == 6
    plan = script(*words, "--ratios", 0.1, 0.3, "--output_dir", out, "--dry_run").stdout
    assert "--ratio 0.3\n" in plan and "of the grid's 2 runs 1 are done already" in plan
