"""Jobs of milliseconds: a script without torch that leaves records as the real ones do, and misbehaves on demand."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinymem.records.finder import records_in
from tinymem.sweeps.attempt import Place
from tinymem.sweeps.job import Job

SCRIPT = '''
import argparse, errno, os, signal, sys, time
from pathlib import Path
from tinymem import cli, files

parser = argparse.ArgumentParser()
parser.add_argument("--name")
parser.add_argument("--value", type=int, nargs="+", default=[0])
parser.add_argument("--output_dir", type=Path)
parser.add_argument("--seconds", type=float, default=0)
a = parser.parse_args()

def asked(what):
    """Whether the test wants this trouble; each time it is wanted once less."""
    wish = a.output_dir / f"{what}_{a.name}"
    times = int(wish.read_text()) if wish.exists() else 0
    if times:
        wish.write_text(str(times - 1))
    return times > 0

def main():
    for value in a.value:
        with open(a.output_dir / "log", "a") as log:
            log.write(f"{a.name} {value} {os.getpid()} {os.getppid()}\\n")
        time.sleep(a.seconds)
        if asked("fail"):
            raise ValueError("no luck")
        if asked("refuse"):
            sys.exit(2)
        path = a.output_dir / "records" / f"{a.name}_{value}.json"
        if asked("torn"):  # killed with half of the record on the disk
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.{0:032x}.tmp").write_text('{"format": 2, ')
            os.kill(os.getpid(), signal.SIGKILL)
        if asked("full"):
            def full(descriptor):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync = full
        method, prints = {"name": a.name, "value": value}, {"weights": "what no driver can know"}
        results = {"square": value**2, "percent_memorized_train": 0.0 if a.name == "clean" else 50.0}
        record = {"format": 2, "kind": "unlearn", "method": method, "fingerprints": prints, "results": results}
        record |= {"cost": {}, "environment": {}}
        files.write_json(path, record)

cli.run(main)
'''


@pytest.fixture
def small(tmp_path):
    """A folder to sweep in: small.job(...), .place, .wish("fail", "a", times), .log(), .results()."""
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir(), out.mkdir()
    (root / "script.py").write_text(SCRIPT)

    def identity(name, values=()) -> dict:
        return {"kind": "unlearn", "method": {"name": name} | ({} if values else {"value": 0})}

    def job(name, values=(), seconds=0.0, **fields) -> Job:
        words = ("script.py", f"--name={name}", f"--output_dir={out}", f"--seconds={seconds}")
        varies = dict(varies="value", values=tuple(values)) if values else {}
        return Job(name, "group", words, str(out), identity(name, values), **varies, **fields)

    def log() -> list[str]:
        """Every "name value" that was worked on, in order of time."""
        path = out / "log"
        return [" ".join(line.split()[:2]) for line in path.read_text().splitlines()] if path.exists() else []

    def results() -> dict:
        """(name, value) -> record without its cost."""
        found = {}
        for record in records_in(out):
            key = record["method"]["name"], record["method"]["value"]
            assert key not in found
            found[key] = record["method"], record["results"]
        return found

    return SimpleNamespace(
        root=root, out=out, job=job, log=log, results=results, place=Place(str(root), str(tmp_path / "sweep")),
        failed=tmp_path / "sweep" / "failed", wish=lambda what, name, n=1: (out / f"{what}_{name}").write_text(str(n)),
    )  # fmt: skip


@pytest.fixture
def wait_for():
    """wait_for(condition, seconds): what the condition gives as soon as that is true; an error if it never is."""

    def wait(condition, seconds: float = 60.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.01)
        raise AssertionError("this did not happen")

    return wait


@pytest.fixture
def processes_with():
    """processes_with(text): the processes whose command line has this text, this one excepted."""

    def find(text: str) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in command and "pytest" not in command.split("\0")[:4]:
                found.append(int(path.parent.name))
        return found

    return find
