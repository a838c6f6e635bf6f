"""How long the rest of a sweep will take, by hand."""

from dataclasses import replace

import pytest

from tinymem.sweeps.job import Job
from tinymem.sweeps.timings import FILE, Timings, note

JOB = Job("one", "npo", ("a.py", "--x"), "folder", {"kind": "train"})
ATTACKED = replace(JOB, attacks=({"name": "quantize"},))


def test_nothing_is_known_before_the_first_command(tmp_path):
    assert Timings(tmp_path).expected(JOB) is None and Timings(tmp_path).total([JOB]) is None
    assert Timings(tmp_path).count == 0 and Timings(tmp_path).total([]) == 0


def test_the_most_similar_commands_tell(tmp_path):
    for job, seconds in ((JOB, 2.0), (JOB, 4.0), (replace(JOB, group="dpo"), 9.0), (ATTACKED, 60.0)):
        note(tmp_path, job, 3, seconds)
    timings = Timings(tmp_path)
    assert timings.count == 4
    assert timings.expected(JOB) == 3.0
    assert timings.expected(replace(JOB, group="rmu")) == 5.0  # as long as the same script without attacks
    assert timings.expected(replace(ATTACKED, group="rmu")) == 60.0
    assert timings.expected(replace(JOB, words=("b.py",))) == pytest.approx(75 / 4)
    assert timings.total([JOB, ATTACKED]) == 63.0


def test_a_damaged_line_is_left_out(tmp_path):
    note(tmp_path, JOB, 1, 2.0)
    with open(tmp_path / FILE, "a") as file:
        file.write(
            '{"script": "a.py"}\n[1]\nnonsense\n{"script": "a.py", "group": "npo", "attacked": false, "seconds": "x"}\n'
        )
    note(tmp_path, JOB, 1, 4.0)
    assert Timings(tmp_path).expected(JOB) == 3.0


def test_a_folder_that_cannot_be_written_stops_no_sweep(tmp_path):
    note(tmp_path / "missing", JOB, 1, 2.0)
    assert not (tmp_path / "missing").exists()
