"""The command `tinymem` and what `import tinymem` gives, from the repository."""

import ast
import json
import os
import subprocess
import sys

import pytest
from small import ROOT

import tinymem
from tinymem import cli, scripts
from tinymem.cli.listing import listing
from tinymem.sweeps.job import Job
from tinymem.sweeps.jobs import FINETUNING, LOCALIZE, PRODUCTION, TRAINING

WATCH = "import sys, time; {code}; print(sorted({{'torch', 'numpy'}} & sys.modules.keys()), time.process_time())"


def python(*words, code: str = "", **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, *(["-c", code] if code else map(str, words))]
    return subprocess.run(command, capture_output=True, text=True, **settings)


def console(*words, **settings) -> subprocess.CompletedProcess:
    return python("-m", "tinymem", *words, **settings)


@pytest.mark.parametrize("code", ["import tinymem; dir(tinymem)", "sys.argv[1:] = ['--help']; main()"])
def test_help_and_import_are_instant(code):
    setup = "from tinymem.__main__ import main; " if "main()" in code else ""
    fastest = float("inf")
    for _ in range(3):
        done = python(code=WATCH.format(code=setup + code))
        loaded, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
        fastest = min(fastest, float(seconds))
    assert loaded == "[]" and fastest < 0.3  # of this process alone; measured alone it is under 0.1 s


def test_help_lists_every_command_in_a_line():
    done = console("--help")
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert done.returncode == 0 and lines.keys() == scripts.SCRIPTS.keys()
    assert all(len(line) < 100 and scripts.SCRIPTS[name].about in line for name, line in lines.items())
    assert "report, rerun" in lines["records"] and "tinymem --list" in done.stdout
    assert console().returncode == 2 and console("--version").stdout == f"tinymem {tinymem.__version__}\n"


def test_the_command_lists_what_scripts_list():
    done = console("--list")
    assert done.returncode == 0 and done.stdout.strip() == listing() and not done.stderr


@pytest.mark.parametrize("name", scripts.SCRIPTS)
def test_help_of_a_command_names_the_command_and_not_its_script(name):
    done = console(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: tinymem {name} ")
    assert f"python {scripts.SCRIPTS[name].start}" not in done.stdout and "tinymem " + name in done.stdout


def test_a_script_started_by_its_path_keeps_its_name():
    done = python(ROOT / TRAINING, "--help")
    assert done.stdout.startswith(f"usage: {TRAINING} ") and f"    python {TRAINING} " in done.stdout


@pytest.mark.parametrize("words, named", [(["trian"], "'trian' is no command"), (["train", "--bogus"], "--bogus")])
def test_a_mistake_is_one_line_and_exit_code_2(words, named):
    done = console(*words)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert named in done.stderr and done.stderr.startswith(" ".join(["tinymem", *words[:-1]]) + ": error: ")


def test_exports_are_all_there_and_wrong_ones_are_refused():
    for name in tinymem.__all__:
        assert getattr(tinymem, name) is not None and name in dir(tinymem)
    from tinymem import load_model
    from tinymem.models.tinymem import load_model as original

    assert load_model is original and len(tinymem.__all__) < 20
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tinymem.nonsense  # noqa: B018
    with pytest.raises(ImportError):
        from tinymem import nonsense  # noqa: F401


def test_notebooks_import_from_the_top_what_is_there():
    """What the first notebook imports of functions and settings can be imported from tinymem itself."""
    notebook = json.loads((ROOT / "results" / "Visualization_Notebook.ipynb").read_text(encoding="utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    python = "\n".join(line for line in code.splitlines() if not line.startswith("%"))
    imports = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.ImportFrom)]
    names = {each.name for node in imports if node.module.startswith("tinymem") for each in node.names}
    assert len(names) > 8 and names <= set(tinymem.__all__)


def test_without_a_checkout_jobs_are_commands(monkeypatch, tmp_path):
    starts = [TRAINING, FINETUNING, LOCALIZE, PRODUCTION]
    jobs = [Job("j", "g", (path, "--a=1"), str(tmp_path), {"kind": "unlearn"}, "ratio", (0.1,)) for path in starts]
    assert [job.command([0.1])[0] for job in jobs] == starts and scripts.home() == ROOT
    monkeypatch.setattr(scripts, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [job.command([0.1])[:3] for job in jobs] == [
        ["-m", "tinymem", name] for name in ("train", "finetune", "unlearn", "unlearn-lm")
    ]
    assert jobs[0].command([0.1])[3:] == ["--a=1", "--ratio", "0.1"] and scripts.home() == tmp_path


def test_the_program_is_named_after_the_command_or_the_file(monkeypatch):
    for started, usual, expected in (
        ("/a/b/train.py", "", "train.py"),
        ("/a/b/__main__.py", "python -m tinymem.records", "python -m tinymem.records"),
        ("tinymem records", "python -m tinymem.records", "tinymem records"),
    ):
        monkeypatch.setattr(sys, "argv", [started])
        assert cli.program(usual) == expected


def test_every_script_is_there():
    for name, script in scripts.SCRIPTS.items():
        assert callable(scripts.load(name).main)
        assert script.start.startswith("-m ") or os.access(ROOT / script.start, os.R_OK)
