"""What every script has in common: instant help, errors in one line, flags built from dataclasses."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest
from small import ROOT, in_process, script

from tinymem import cli
from tinymem.attacks.registry import ATTACKS
from tinymem.errors import OutOfMemory, UserError
from tinymem.localize.registry import METHODS
from tinymem.metrics.registry import METRICS
from tinymem.options import allowed_text, check_options, option
from tinymem.regularizers.registry import REGULARIZERS

SCRIPTS = ["memorization_in_toy_models.py", "old_data.py", "ft_toy_model.py", "src/localize/localize_memorization.py"]
TRAIN, LOCALIZE = SCRIPTS[0], SCRIPTS[3]


@dataclass(frozen=True)
class Example:
    """Example settings"""

    ratio: tuple[float, ...] = option((0.5,), "share", above=0.0, below=1.0)
    count: int = option(3, "a count", low=1, high=9)
    kind: str = option("a", "a kind", choices=("a", "b"))
    cap: float | None = option(None, "a cap", above=0.0)
    on: bool = option(False, "a switch")
    __post_init__ = check_options


def parsed(*words) -> Example:
    parser = cli.Parser("test")
    cli.add_options(parser, Example)
    return cli.collect(Example, parser.parse_args(words))


def test_flags_come_from_the_dataclass():
    assert parsed() == Example()
    words = "--ratio 0.1 0.2 --count 4 --kind b --cap 3 --on 1".split()
    assert parsed(*words) == Example((0.1, 0.2), 4, "b", 3.0, True)
    assert parsed("--on") == parsed("--on", "true") == Example(on=True)
    assert parsed("--on", "0") == Example()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(ratio=(0.5, 1.0)), r"--ratio 1.0: must be in \(0.0, 1.0\)"),
        (dict(ratio=(float("nan"),)), "--ratio nan"),
        (dict(count=10), r"--count 10: must be in \[1, 9\]"),
        (dict(kind="c"), "--kind c: must be one of a, b"),
        (dict(cap=0.0), "--cap 0.0: must be > 0.0"),
        (dict(cap=float("inf")), "--cap inf: must be a finite number > 0.0$"),
        (dict(cap=float("nan")), "--cap nan: must be a finite number > 0.0$"),
    ],
)
def test_values_that_are_not_allowed(change, message):
    with pytest.raises(UserError, match=message):
        Example(**change)


def test_every_bound_has_words():
    assert allowed_text(dict(low=1)) == ">= 1" and allowed_text(dict(below=2)) == "< 2"
    assert allowed_text(dict(low=0, below=1)) == "in [0, 1)"


@pytest.mark.parametrize(
    "words, named",
    [
        (["--a", ""], "--a: is empty"),
        (["--a="], "--a: is empty"),
        (["--b", "1", "", "2"], "--b: is empty"),
        ([""], "an argument: is empty"),
        (["--a", "n\udcff"], "'n\\udcff': a name that is not UTF-8; rename it"),
    ],
)
def test_an_empty_argument_is_no_default(words, named, capsys):
    parser = cli.Parser("test")
    parser.add_argument("--a", default="here")
    parser.add_argument("--b", nargs="+")
    parser.add_argument("place", nargs="*")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2 and named in capsys.readouterr().err


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_instant_and_does_not_load_torch(name):
    watch = "import sys; sys.argv[1:] = ['--help']; import runpy, atexit; "
    watch += "import time; heavy = ('torch.nn', 'numpy.linalg'); "
    watch += "atexit.register(lambda: print([name for name in heavy if name in sys.modules], time.process_time())); "
    watch += (
        f"sys.path.insert(0, {str((ROOT / name).parent)!r}); runpy.run_path({str(ROOT / name)!r}, run_name='__main__')"
    )
    fastest = float("inf")
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, check=True)
        loaded, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
        fastest = min(fastest, float(seconds))  # of this process alone: the cores may be busy
    assert loaded == "[]"
    assert "default" in done.stdout and fastest < 1.0  # measured alone it is under 0.4 s


def test_no_script_loads_torch_for_its_help():
    ours = (
        path for path in ROOT.glob("**/*.py") if path.relative_to(ROOT).parts[0] in ("src", "experiments", "results")
    )
    scripts = [str(path) for path in ours if "\n    cli.run(" in path.read_text(encoding="utf-8")]
    code = "import contextlib, runpy, sys; from pathlib import Path\nfor script in sys.argv[1:]:\n    "
    code += "sys.argv = [script, '--help']; sys.path.insert(0, str(Path(script).parent))\n    "
    code += "with contextlib.suppress(SystemExit):\n        "
    code += "runpy.run_path(script, run_name='__main__')\n    assert 'torch.nn' not in sys.modules, script"
    assert len(scripts) > 20
    subprocess.run([sys.executable, "-c", code, *scripts], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((TRAIN, "--data_name", "sorting"), "sorting"),
        ((TRAIN, "--n_layers", 49), "--n_layers 49"),
        ((TRAIN, "--lr", 0), "--lr 0.0"),
        ((TRAIN, "--num_test", 30000, "--output_dir", "{tmp}/run"), "--num_test 30000"),
        ((TRAIN, "--num_noise", 30000, "--output_dir", "{tmp}/run"), "--num_noise 30000"),
        ((TRAIN, "--max_ctx", 100, "--output_dir", "{tmp}/run"), "121"),
        (
            (TRAIN, "--device", "tpu9", "--output_dir", "{tmp}/run"),
            "--device tpu9: not available here; give auto, cpu, cuda",
        ),
        ((LOCALIZE, "--model_path", "x", "--localization_method", "greedy", "--metrics", "foo"), "--metrics foo"),
        (
            (LOCALIZE, "--model_path", "x", "--localization_method", "greedy", "--columns", "foo"),
            "--columns foo: must be",
        ),
        (
            (LOCALIZE, "--model_path", "x", "--localization_method", "greedy", "--attack", "foo"),
            "--attack foo: must be",
        ),
        (("src/localize/measure.py", "nobody/x", "--edit_of", "{tmp}/file"), "--edit_of {tmp}/file: is a file"),
        (
            (
                "src/localize/prod_grad.py",
                "--model_name",
                "no/x",
                "--localization_method",
                "npo",
                "--attack",
                "quantize",
                "--quantize.bits",
                1,
            ),
            "--quantize.bits 1",
        ),
        ((TRAIN, "--output_dir", "{tmp}/file/run"), "{tmp}/file/run"),
        ((TRAIN, "--bogus", 1), "--bogus"),
        (("old_data.py", "--num_test", 30000, "--data_dir", "{tmp}"), "--num_test 30000"),
        ((LOCALIZE, "--model_path", "{tmp}", "--localization_method", "balanced_subnet"), "{tmp}"),
        ((LOCALIZE, "--model_path", "x", "--localization_method", "magic"), "magic"),
        ((LOCALIZE, "--model_path", "x", "--localization_method", "random_greedy", "--ratio", 1.5), "--ratio 1.5"),
        ((LOCALIZE, "--model_path", "x", "--localization_method", "durable", "--epochs", 2), "--epochs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, named, tmp_path):
    (tmp_path / "file").write_text("in the way")
    words = [str(word).replace("{tmp}", str(tmp_path)) for word in words]
    data = ["--data_dir", str(tmp_path / "data")] if words[0] == TRAIN and "--bogus" not in words else []
    done = script(*words, *data, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert named.replace("{tmp}", str(tmp_path)) in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "file"]
    assert not (tmp_path / "run").exists()  # nor a folder


LACKS = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    OutOfMemory("out of memory (x)"),
]


@pytest.mark.parametrize("error", LACKS)
def test_too_little_memory_is_one_line_and_exit_code_1(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(main, "script")
    message = capsys.readouterr().err
    assert stopped.value.code == 1 and message.startswith("script: error: out of memory (") and message.count("\n") == 1
    assert isinstance(error, OutOfMemory) or "or a smaller model if its weights alone do not fit" in message


def test_a_reader_that_went_away_is_no_error(capsys):
    def main():
        raise BrokenPipeError

    with pytest.raises(SystemExit) as stopped:
        cli.run(main, "script")
    assert stopped.value.code == 1 and capsys.readouterr().err == ""


def test_other_errors_keep_their_traceback():
    def main():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError):
        cli.run(main, "script")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number):
    before = signal.getsignal(number)
    with cli.interruptible() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked() and signal.getsignal(number) is before  # a second one ends the process
    assert signal.getsignal(number) is before


def test_a_script_that_fails_ends_the_one_that_runs_it(tmp_path, capfd):
    (tmp_path / "script.py").write_text("import sys, time; time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))")
    cli.run_script([tmp_path / "script.py", 0, 0])
    assert f"$ python {tmp_path / 'script.py'} 0 0" in capfd.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.run_script([tmp_path / "script.py", 0, 3])
    assert stopped.value.code == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_is_interrupted_may_save_first(number, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, time\ntry:\n    open(sys.argv[1], 'w').close(); time.sleep(60)\n"
                      "finally:\n    time.sleep(1); open(sys.argv[2], 'w').close()")  # fmt: skip

    def interrupt():
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        cli.run_script([script, tmp_path / "begun", tmp_path / "saved"])
    assert (tmp_path / "saved").exists()


def test_a_table():
    rows = [dict(name="a", value=1.5, big=123456.0), dict(name="b", value=None)]
    assert cli.table(rows).splitlines() == [
        "name   value        big",
        "   a  1.5000  1.235e+05",
        "   b       -          -",
    ]


@pytest.mark.parametrize(
    "name", [TRAIN, *(f"src/localize/{name}.py" for name in ("localize_memorization", "prod_grad", "measure"))]
)
def test_list_names_every_mitigation_metric_and_attack_on_a_line_each(name, capsys):
    with pytest.raises(SystemExit) as end:
        in_process(name, "--list")  # no other flag is needed
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[1] for line in lines]
    known = [*(entry.name for entry in REGULARIZERS), "clean", "extra", "both", *METHODS, *METRICS, *ATTACKS]
    assert end.value.code == 0 and named == known
    assert all(len(line.split("  ")[-1]) > 18 for line in lines)  # what it does
