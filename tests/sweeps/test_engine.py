"""Every record once and whole, whatever fails, is killed, or runs beside."""

import errno
import json
import os
import threading
from types import SimpleNamespace

import pytest
from threads import thread_pool

from tinymem import files
from tinymem.cli.sweeping import run_missing
from tinymem.sweeps import engine
from tinymem.sweeps.engine import JobState, run_jobs, survey


def run(small, jobs, retries=1, workers=2, **more):
    with thread_pool(small.place, workers) as pool:
        return run_jobs(survey(jobs), pool, small.place, retries, **more)


def states(sweep) -> dict[str, str]:
    return {name: job_state.state for name, job_state in sweep.jobs.items()}


def failure(small) -> dict:
    (path,) = small.failed.glob("*.json")
    return json.loads(path.read_text())


def test_only_what_is_missing_is_run(small):
    jobs = [small.job("a", (1, 2)), small.job("b", (1,))]
    ended = []
    assert states(run(small, jobs, on_end=lambda p: ended.append(p.job.name))) == {"a": "done", "b": "done"}
    assert sorted(small.log()) == ["a 1", "a 2", "b 1"] and sorted(ended) == ["a", "b"]
    assert states(run(small, jobs)) == {"a": "skipped", "b": "skipped"}
    sweep = run(small, [small.job("a", (1, 2, 3, 4)), small.job("c")])
    assert sorted(small.log()[3:]) == ["a 3", "a 4", "c 0"]
    assert (sweep.jobs["a"].runs, sweep.jobs["a"].before, sweep.jobs["a"].left) == (4, 2, 0)
    assert small.results()["a", 3][1]["square"] == 9
    assert not list((small.out / ".locks").iterdir())


def test_the_records_of_a_running_job_are_seen_one_by_one(small, monkeypatch):
    """A job of many strengths moves the bar while it runs; a record that cannot be read is left to the job."""
    monkeypatch.setattr(engine, "RECORD_SECONDS", 0.05)
    jobs, left = survey([small.job("a", (1, 2, 3), seconds=0.6)]), []
    with thread_pool(small.place, 1) as pool:
        run_jobs(jobs, pool, small.place, on_records=lambda: left.append(jobs["a"].left))
    assert {2, 1} < set(left) and left == sorted(left, reverse=True)


def test_a_failure_is_kept_and_retried_so_often(small):
    small.wish("fail", "a", 3)
    sweep = run(small, [small.job("a", (1, 2)), small.job("b")], retries=1)
    assert states(sweep) == {"a": "failed", "b": "done"} and sweep.jobs["a"].left == 2
    assert small.log().count("a 1") == 2
    kept = failure(small)
    assert kept["message"] == "ValueError: no luck" and kept["exit_code"] == 1 and kept["attempts"] == 2
    assert "Traceback (most recent call last):" in kept["stderr"] and kept["command"].endswith("--value 1 2")
    assert states(run(small, [small.job("a", (1, 2))], retries=1)) == {"a": "done"}
    assert not list(small.failed.iterdir()) and small.log().count("a 1") == 4


def test_what_succeeded_before_a_failure_is_not_done_again(small):
    small.wish("fail", "a", 0)
    run(small, [small.job("a", (1,))])
    small.wish("fail", "a", 1)
    assert states(run(small, [small.job("a", (1, 2, 3))])) == {"a": "done"}
    assert small.log() == ["a 1", "a 2", "a 2", "a 3"]


def test_refused_input_is_not_tried_again(small):
    small.wish("refuse", "a", 9)
    assert states(run(small, [small.job("a")], retries=5)) == {"a": "failed"}
    assert small.log() == ["a 0"] and failure(small)["message"] == "exit code 2"


def test_a_run_killed_while_it_writes(small):
    small.wish("torn", "a", 1)
    assert states(run(small, [small.job("a", (1, 2))], retries=0)) == {"a": "failed"}
    assert failure(small)["message"].startswith("killed by SIGKILL") and small.results() == {}
    assert states(run(small, [small.job("a", (1, 2))])) == {"a": "done"}
    assert set(small.results()) == {("a", 1), ("a", 2)}


def test_jobs_wait_for_those_before_them(small):
    jobs = [small.job("late", after=("first",)), small.job("first", seconds=0.1), small.job("free")]
    assert set(states(run(small, jobs)).values()) == {"done"}
    assert small.log().index("first 0") < small.log().index("late 0")


def test_jobs_after_a_failed_one_are_not_run(small):
    small.wish("fail", "first", 9)
    jobs = [small.job("first"), small.job("second", after=("first",)), small.job("third", after=("second",))]
    sweep = run(small, jobs)
    assert states(sweep) == {"first": "failed", "second": "not run", "third": "not run"}
    assert sweep.jobs["second"].message == "needs first, which failed" and set(small.log()) == {"first 0"}


def test_nothing_to_do_is_done(small):
    def unlearn(**method) -> dict:
        return {"kind": "unlearn", "method": method}

    run(small, [small.job("clean")])
    job = small.job("clean", (7, 8), nothing_to_do=unlearn(name="clean", value=0))
    assert states(run(small, [job])) == {"clean": "skipped"}
    run(small, [small.job("dirty")])
    assert survey([small.job("dirty", (7,), nothing_to_do=unlearn(name="dirty", value=0))])["dirty"].left == 1


def test_nothing_to_do_is_decided_where_memories_are_sought(small):
    """Among test triggers, not in the training set; and not by a record without that number."""

    def left(test: str, **results) -> int:
        forget = {"forget": "test"} if test else {}
        record = {"format": 2, "kind": "unedited", "forget": forget, "results": results, "cost": {}, "environment": {}}
        path = files.write_json(small.out / "records" / "x.json", record)
        left = survey([small.job("a", (7,), nothing_to_do={"kind": "unedited", "forget": forget})])["a"].left
        path.unlink()
        return left

    assert left("", percent_memorized_train=0.0, percent_memorized_test=50.0) == 0
    assert left("test", percent_memorized_train=0.0, percent_memorized_test=50.0) == 1
    assert left("test", percent_memorized_train=50.0, percent_memorized_test=0.0) == 0
    assert left("", perplexity=3.0) == left("", percent_memorized_train=None) == 1


def test_a_limit_and_how_often_jobs_are_compared(small, monkeypatch, capsys):
    """Never: the study's 60216 commands would be compared 1.8 billion times before the first starts."""
    monkeypatch.setattr(JobState, "__eq__", None)
    jobs = [small.job(name) for name in "abc"]
    arguments = SimpleNamespace(limit=2, dry_run=False, retries=0)
    everything, sweep = run_missing(
        arguments, jobs, small.out / "sweep", small.root, lambda jobs, place: thread_pool(place, 1)
    )
    assert small.log() == ["a 0", "b 0"] and list(sweep.jobs) == ["a", "b"]
    assert [job_state.left for job_state in everything.values()] == [0, 0, 1]


def test_two_sweeps_side_by_side_share_the_work(small):
    jobs = [small.job(f"j{i}", (1, 2), seconds=0.02) for i in range(6)]
    sweeps = []
    threads = [threading.Thread(target=lambda: sweeps.append(run(small, jobs))) for _ in range(2)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert sorted(small.log()) == sorted(f"j{i} {value}" for i in range(6) for value in (1, 2))
    for sweep in sweeps:
        assert all(job_state.left == 0 and job_state.is_done for job_state in sweep.jobs.values())


def test_a_full_disk_ends_the_sweep(small):
    small.wish("full", "b", 1)
    jobs = [small.job(name, (1, 2)) for name in "abcd"]
    sweep = run(small, jobs, workers=1, retries=5)
    assert "No space left on device" in sweep.ended and "same command" in sweep.ended
    assert set(small.log()) == {"a 1", "a 2", "b 1"} and ("b", 1) not in small.results()
    assert [states(sweep)[name] for name in "ab"] == ["done", "failed"] and sweep.jobs["d"].left == 2
    assert len(small.results()) == sum(p.runs - p.left for p in sweep.jobs.values()) and not list(
        small.out.rglob("*.tmp")
    )
    assert {*states(run(small, jobs)).values()} == {"done", "skipped"}
    assert len(small.log()) == 9


def test_a_disk_too_full_for_the_failure(small, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    small.wish("fail", "a", 9)
    monkeypatch.setattr(os, "fsync", full)
    sweep = run(small, [small.job("a")])
    assert "failed" in sweep.ended and "No space left on device" in sweep.ended and not list(small.failed.glob("*"))


def test_a_worker_that_is_lost_is_a_failure_that_can_be_repeated(small):
    class Fragile:
        """Loses its first worker, as Parsl tells it: by an exception in the future."""

        def __init__(self, pool):
            self.pool, self.lost = pool, False

        def submit(self, job):
            future = self.pool.submit(job)
            if not self.lost:
                self.lost = True
                future.result()
                (small.out / "records").rename(small.out / "gone")
                from concurrent.futures import Future

                future = Future()
                future.set_exception(RuntimeError("worker 3 was lost"))
            return future

    with thread_pool(small.place, 1) as pool:
        sweep = run_jobs(survey([small.job("a")]), Fragile(pool), small.place, retries=0)
        assert states(sweep) == {"a": "failed"} and "worker 3 was lost" in failure(small)["message"]
        assert any("RuntimeError" in line for line in failure(small)["stderr"])
        assert states(run_jobs(survey([small.job("a")]), pool, small.place)) == {"a": "done"}
    assert not list(small.failed.iterdir())


def test_a_damaged_record_is_named(small):
    run(small, [small.job("a")])
    (path,) = (small.out / "records").iterdir()
    path.write_text("{")
    from tinymem.errors import UserError

    with pytest.raises(UserError, match="delete it"):
        survey([small.job("a")])
