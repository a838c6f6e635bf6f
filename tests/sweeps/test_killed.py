"""A driver that is killed leaves no process and loses nothing; Ctrl-C ends it in order; Parsl's workers may die."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

DRIVER = """
import pathlib
from functools import partial
from tinymem import cli
from tinymem.sweeps.sites import find_site, open_pool
from tinymem.cli.sweeping import add_sweep_options, sweep
from tinymem.sweeps.job import Job

def main():
    parser = cli.Parser("test")
    add_sweep_options(parser, "")
    a = parser.parse_args()
    jobs = [
        Job(f"j{{i}}", "group", ("script.py", f"--name=j{{i}}", f"--output_dir={out}", "--seconds=0.3"), {out!r},
            {{"kind": "unlearn", "method": {{"name": f"j{{i}}"}}}}, "value", (1, 2))
        for i in range(4)
    ]
    pool = partial(open_pool, find_site(a.site), max_workers=a.max_workers)
    sweep(a, jobs, pathlib.Path(a.output_dir), {root!r}, pool)

cli.run(main)
"""


@pytest.fixture
def driver(small):
    """driver(*flags): starts a sweep of 8 records as a process of its own."""
    script = small.root / "driver.py"
    script.write_text(DRIVER.format(out=str(small.out), root=str(small.root)))

    def start(*flags) -> subprocess.Popen:
        command = [sys.executable, str(script), "--output_dir", small.place.folder, *flags]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    return start


def finish(process) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def check_whole(small, extra: int) -> None:
    """Every record of an undisturbed sweep, once; `extra` values at most were begun twice."""
    expected = {(f"j{i}", value) for i in range(4) for value in (1, 2)}
    assert set(small.results()) == expected
    assert all(results["square"] == value**2 for (_, value), (_, results) in small.results().items())
    assert len(expected) <= len(small.log()) <= len(expected) + extra


@pytest.mark.slow
def test_the_driver_is_killed(small, driver, wait_for, processes_with):
    for _ in range(2):
        before = len(small.log())
        process = driver("--max_workers", "2")
        wait_for(lambda: len(small.log()) >= before + 2)
        os.kill(process.pid, signal.SIGKILL)
        finish(process)
        wait_for(lambda: not processes_with(str(small.out)))
    code, output, errors = finish(driver("--max_workers", "2"))
    assert code == 0, errors
    check_whole(small, extra=4)
    assert not small.failed.exists() or not list(small.failed.iterdir())
    code, output, _ = finish(driver())  # finds everything done
    assert code == 0 and " 8 " in output


@pytest.mark.slow
def test_ctrl_c(small, driver, wait_for, processes_with):
    process = driver("--max_workers", "2")
    wait_for(lambda: len(small.log()) >= 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and all who share its group
    code, output, errors = finish(process)
    assert code == 130 and "same command" in errors and "Traceback" not in errors and "not run" in output
    assert not processes_with(str(small.out)) and not small.failed.exists()
    assert finish(driver("--max_workers", "2"))[0] == 0
    check_whole(small, extra=2)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_leaves_parsl_its_helpers_until_it_has_ended(small, driver, wait_for, processes_with):
    process = driver("--site", "local_processes", "--max_workers", "1")
    wait_for(lambda: small.log())
    os.killpg(process.pid, signal.SIGINT)
    code, output, errors = finish(process)
    assert code in (0, 130) and "Traceback" not in errors, errors  # 0: all of it ended before the workers did
    wait_for(lambda: not processes_with(str(small.place.folder)))
    assert finish(driver("--max_workers", "2"))[0] == 0
    check_whole(small, extra=1)


@pytest.mark.slow
def test_parsl_workers_are_killed_and_no_process_is_left(small, driver, wait_for, processes_with):
    process = driver("--site", "local_processes", "--max_workers", "2", "--retries", "3")
    log = small.out / "log"
    line = wait_for(lambda: log.exists() and log.read_text().splitlines()[:1], 60)[0]
    run, worker = map(int, line.split()[2:])
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{run}").exists())
    code, output, errors = finish(process)
    assert code == 0, errors
    check_whole(small, extra=2)
    assert not list(small.failed.iterdir())
    wait_for(lambda: not processes_with(str(small.place.folder)))
    assert list((Path(small.place.folder) / "parsl").rglob("parsl.log"))
