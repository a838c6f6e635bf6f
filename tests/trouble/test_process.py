"""Signals, closed and full streams, terminals that lack a character, no memory: one line, the right exit code."""

import os
import signal
import subprocess
import sys
import time

import pytest
from small import ROOT

SCRIPT = """
from tinymem import cli
import os, sys, time

def main():
    {body}

{begin}
if __name__ == "__main__":
    cli.run(main)
"""
LINUX = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")


@pytest.fixture
def start(tmp_path):
    """start(body, begin=, **options): a script of the project with this main function, as a process."""

    def start(body, begin="", **options):
        (tmp_path / "script.py").write_text(SCRIPT.format(body=body, begin=begin))
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen([sys.executable, str(tmp_path / "script.py")], **options)

    return start


def one_line(process, code: int) -> str:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.strip().count("\n") == 0 and "Traceback" not in errors
    return errors.strip()


SWALLOW = "try:\n    print('ready', flush=True); time.sleep(60)\nexcept: pass\ntime.sleep(60)"


@pytest.mark.parametrize("place", ["import", "main"])
def test_ctrl_c_ends_a_script_even_where_somebody_catches_everything(start, place):
    body = SWALLOW.replace("\n", "\n    ") if place == "main" else "pass"
    process = start(body, SWALLOW if place == "import" else "")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert one_line(process, 130) == "script.py: interrupted; run the same command again to resume"


def test_a_working_folder_that_is_gone(start):
    """As at the end of a sweep, which tells where its records are, seen from there."""
    gone = "import tempfile; folder = tempfile.mkdtemp(); os.chdir(folder); os.rmdir(folder)"
    process = start(f"{gone}; from tinymem.cli.sweeping import _common; _common(['/one/a', '/one/b'])")
    assert (
        one_line(process, 2)
        == "script.py: error: the folder that this was started in is gone; start it in one that is there"
    )


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_ctrl_c_while_torch_loads(start, seconds):
    process = start("print('ready', flush=True); import torch; torch.zeros(1); time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert "interrupted" in one_line(process, 130)


def test_an_interrupted_import_is_not_run_a_second_time(tmp_path):
    (tmp_path / "slow.py").write_text("import sys\nsys.runs = getattr(sys, 'runs', 0) + 1\nraise KeyboardInterrupt")
    code = """
import sys
import tinymem.lazy
tinymem.lazy.HEAVY += ("slow",)
import slow
for _ in range(2):
    try: slow.x
    except KeyboardInterrupt: print(sys.runs)
"""
    environment = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_a_closed_terminal_ends_a_script_and_what_it_runs(tmp_path, start):
    child = tmp_path / "child.py"
    child.write_text(
        "import sys, time\nfrom tinymem import cli\ndef main():\n    with cli.interruptible() as asked:\n"
        f"        open({str(tmp_path / 'begun')!r}, 'w').close()\n        while not asked(): time.sleep(0.02)\n"
        f"    open({str(tmp_path / 'saved')!r}, 'w').close()\ncli.run(main)"
    )
    process = start(f"cli.run_script([{str(child)!r}])")
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 130 and (tmp_path / "saved").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    script = tmp_path / "script.py"
    body = f"file = open({str(tmp_path / 'file')!r}, 'w'); print('table'); print('note', file=sys.stderr); file.close()"
    script.write_text(SCRIPT.format(body=body, begin=""))
    done = subprocess.run(["sh", "-c", f'exec "$0" "$1" {closed}', sys.executable, str(script)], capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and (tmp_path / "file").read_text() == ""


@LINUX
def test_a_full_disk_behind_stdout(start):
    with open("/dev/full", "w") as full:
        line = one_line(start("print('table')", stdout=full), 1)
    assert line == "script.py: error: output: cannot be written (No space left on device); make room"


def test_a_reader_that_goes_away(start):
    process = start("time.sleep(0.5); print('table ' * 10**6)")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_a_terminal_cannot_show_is_spelled_out(start, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    process = start(r"print('5 \u00b1 1 \u4e2d \ud800')", env=environment, encoding=encoding)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (
        output
        == {"ascii": r"5 \xb1 1 \u4e2d \ud800", "utf-8": "5 ± 1 中 \\ud800"}.get(encoding, r"5 ± 1 \u4e2d \ud800")
        + "\n"
    )


ERRORS = {
    "open('x' * 300)": (2, "File name too long"),
    "raise OSError(28, 'No space left on device')": (1, "make room"),
    "raise ImportError('libtorch.so: failed to map segment from shared object')": (1, "out of memory"),
    "raise OSError(12, 'Cannot allocate memory')": (1, "out of memory"),
    'raise RuntimeError("can\'t start new thread")': (1, "out of memory"),
    "from tinymem.errors import UserError; raise UserError('--name a\\nb\\x1b[31m: no')": (
        2,
        r"--name a\nb\x1b[31m: no",
    ),
    "'\\udcff'.encode()": (2, "not UTF-8"),
    "cli.Parser('').parse_args(['--a\\nb'])": (2, r"--a\nb"),
}


@pytest.mark.parametrize("body", ERRORS)
def test_one_line_for_each(start, body):
    code, words = ERRORS[body]
    assert words in one_line(start(body), code)


@pytest.mark.parametrize("text", ["9" * 30, "9" * 5000, "-1", "1.5", "²", "1\n2", ""])
def test_counts_of_flags(text):
    done = subprocess.run(
        [sys.executable, str(ROOT / "old_data.py"), f"--examples={text}"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and len(done.stderr) < 300
