"""No shell ever reads a user's string, and a worker that cannot start ends the sweep with its reason."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinymem.errors import UserError
from tinymem.models import free_memory
from tinymem.sweeps import sites
from tinymem.sweeps.attempt import Place
from tinymem.sweeps.engine import run_jobs, survey
from tinymem.sweeps.job import Job

LOCAL = sites.SITES["local_processes"]
CLUSTER = sites.Site(account="mine", walltime="01:00:00")
NAMES = ["a b", "a;touch owned;b", "$(touch owned)", "`touch owned`", "a'b", 'a"b', "a\nb", "a&b", "ä", "a{b}"]


@pytest.mark.parametrize("name", NAMES)
def test_the_files_of_parsl_have_plain_paths(tmp_path, monkeypatch, name):
    for home, folder in ((tmp_path / "home", tmp_path / name), (tmp_path / name, tmp_path / "sweep")):
        monkeypatch.setenv("HOME", str(home))
        for site in (LOCAL, CLUSTER):
            place = sites.parsl_folder(site, folder)
            assert sites.PLAIN.fullmatch(str(place)) and place.is_dir()
    monkeypatch.setenv("HOME", str(tmp_path / name))
    assert sites.PLAIN.fullmatch(str(sites.parsl_folder(LOCAL, tmp_path / name)))
    with pytest.raises(UserError, match="--output_dir") as caught:
        sites.parsl_folder(CLUSTER, tmp_path / name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_the_path_of_this_python(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "executable", str(tmp_path / name / "python"))
    words = sites._shell_command("process_worker_pool.py").format()
    import shlex

    assert shlex.split(words)[0] == sys.executable
    with pytest.raises(UserError, match="path of this Python"):
        sites.parsl_folder(CLUSTER, tmp_path)


@pytest.mark.parametrize("key", ["account", "queue", "partition", "interface"])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_site_pastes_into_a_command_is_one_word(key, name):
    with pytest.raises(UserError, match=f"--{key}"):
        replace(CLUSTER, **{key: name})


def test_lines_of_a_script_and_the_affinity_of_workers():
    for change in (dict(constraint="gpu\ntouch owned"), dict(cpu_affinity="none; touch owned")):
        with pytest.raises(UserError):
            replace(CLUSTER, **change)
    assert replace(CLUSTER, constraint="gpu&hbm80g", cpu_affinity="list:0-7:8-15")


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a = ", "\xff", "walltime = 1", "base = 1", "nodes = 99999999999999999999"]
)
def test_sites_that_cannot_be_read(tmp_path, text):
    (tmp_path / "x.toml").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="x.toml") as caught:
        sites.find_site(str(tmp_path / "x.toml"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "value, gpus",
    [("NoDevFiles", []), ("none", []), ("void", []), ("all", []), ("", []), ("-1", []), ("0,1", ["0", "1"]),
     ("0,x,1", ["0"]), ("1,1", ["1"]),
     ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"])],
)  # fmt: skip
def test_gpus_that_may_be_used(monkeypatch, value, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert sites._visible_gpus() == gpus


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("inside", [True, False], ids=["own_group", "container"])
def test_the_limit_of_a_container_or_job_counts(tmp_path, version, inside):
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
             2: ("memory.max", "memory.current", "inactive_file")}[version]  # fmt: skip
    mount = tmp_path / "memory" if version == 1 else tmp_path
    group = mount / "job" / "step" if inside else mount
    group.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, ("8000", "5000")):
        (group / name).write_text(text)
    (group / "memory.stat").write_text(f"cache 1\n{names[2]} 1000\n")
    (tmp_path / "proc").write_text("4:memory,cpu:/job/step\n" if version == 1 else "0::/job/step\n")
    assert free_memory._cgroup_rooms(tmp_path, tmp_path / "proc") == [4000]
    (group / names[0]).write_text("max" if version == 2 else str(2**63 - 4096))
    assert free_memory._cgroup_rooms(tmp_path, tmp_path / "proc") == []


def test_a_block_that_ends_or_waits_for_ever_without_a_worker(monkeypatch):
    from parsl.jobs.states import JobState, JobStatus

    said = []
    executor = SimpleNamespace(
        connected_blocks=lambda: ["0"], set_bad_state_and_fail_all=lambda error: said.append(str(error))
    )
    ended = [JobStatus(state, exit_code=code) for state, code in ((JobState.COMPLETED, 0), (JobState.FAILED, 3))]
    watch = sites.StartWatch(60.0)
    watch(executor, {"0": ended[1], "1": ended[0], "2": ended[1]})
    assert not said  # the first one had workers
    watch(executor, {"0": ended[1], "1": ended[0], "2": ended[0], "3": ended[1]})
    assert said == ["workers do not start (exit code 3)"]
    said.clear()
    now = time.monotonic()
    running = {"1": JobStatus(JobState.RUNNING), "2": JobStatus(JobState.PENDING)}
    watch(executor, running)
    monkeypatch.setattr(sites.time, "monotonic", lambda: now + 61)
    watch(executor, {"2": running["2"]})
    assert not said
    watch(executor, running)
    assert said == ["no worker started within 60 s"]


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a b;touch owned;$(touch owned)"
    job = Job("j", "g", ("script.py",), str(folder), {"kind": "unlearn", "method": {"name": "j"}})
    place, start = Place(str(tmp_path), str(folder)), time.monotonic()
    site = replace(LOCAL, worker_init="echo no such module >&2; exit 7")
    with sites.open_pool(site, [job], place, 1) as pool:
        sweep = run_jobs(survey([job]), pool, place, 1)
    assert "no such module" in sweep.ended and "exit code 7" in sweep.ended, sweep.ended
    assert time.monotonic() - start < 60 and not list(Path(tmp_path).rglob("owned"))
