"""How long a method will take: of the right size, and said before those that take more than a minute."""

import time

import pytest
from methods import quick
from tiny import new_model, new_task

from tinymem.localize.registry import METHODS, STUDY
from tinymem.planning.duration import Clock, duration


@pytest.mark.parametrize("name", (*STUDY, "npo", "kfac", "ssd"))
@pytest.mark.slow
def test_estimates_are_of_the_right_size(name):
    model, task, method = new_model("gpt2"), new_task(6, microbatch=2), METHODS[name]
    hp = quick(method, stop_loss=0.0)

    def right() -> bool:
        start = time.perf_counter()
        for _ in method.run(model, task, hp):
            pass
        took = time.perf_counter() - start
        return took / 20 < Clock(model, task).seconds(method, hp) < 20 * took

    assert any(right() for _ in range(3))  # on a busy machine a millisecond may take many


def test_only_long_methods_are_announced(monkeypatch):
    clock, method = Clock(new_model("gpt2"), new_task()), METHODS["durable"]
    assert clock.warning(method, method.hyper_parameters()) is None
    monkeypatch.setattr(Clock, "_both", lambda self, rows: 36e3)
    assert clock.warning(method, method.hyper_parameters()) == "durable: about 10.0 h"  # one pass
    monkeypatch.setattr(Clock, "_forward", lambda self, rows: 2.0)
    zero_out = METHODS["zero_out"]
    assert (
        clock.warning(zero_out, zero_out.hyper_parameters()) == "zero_out: about 2 min"
    )  # 10 sequences, 2 layers, 3 passes


def test_durations_are_in_words():
    assert [duration(seconds) for seconds in (40, 180, 9000, 4 * 86400)] == ["40 s", "3 min", "2.5 h", "4 days"]


def test_a_pass_is_timed_with_as_many_sequences_as_the_methods_passes_have(monkeypatch):
    timed = []
    monkeypatch.setattr(Clock, "_both", lambda self, rows: timed.append(rows) or 1.0)
    clock, method = Clock(new_model("gpt2"), new_task(6, microbatch=4)), METHODS["subnet"]
    for batch_size in (2, 3, 6):
        clock.seconds(method, quick(method, batch_size=batch_size, stop_loss=0.0))
    assert timed == [2, 3, 6]


def test_passes_that_a_method_does_not_make_are_not_timed(monkeypatch):
    for kind in ("_forward", "_both"):
        monkeypatch.setattr(Clock, kind, lambda self, rows: pytest.fail("timed"))
    svd = METHODS["svd"]
    assert Clock(new_model("gpt2"), new_task()).seconds(svd, svd.hyper_parameters()) == 0
