import json
import multiprocessing
import os

import pytest
import torch

from tinymem import files
from tinymem.errors import UserError
from tinymem.records.cost import UNKNOWN, Cost, measured
from tinymem.records.record import find_record, read_record, read_values, write_record
from tinymem.records.table import load_records

METHOD = {"name": "x", "ratio": 0.1}
RUN = {"kind": "unlearn", "parent": "p", "data": {"seed": 0}, "method": METHOD, "attack": {}}


def test_a_record_is_found_by_its_identity(tmp_path):
    assert find_record(tmp_path, RUN) is None
    write_record(tmp_path, RUN, {"loss": float("nan"), "accuracy": 0.5}, Cost(1.23456, 2.0), "cpu")
    record = find_record(tmp_path, dict(reversed(RUN.items())))
    assert record["format"] == 2 and record["kind"] == "unlearn" and record["parent"] == "p"
    assert record["data"] == {"seed": 0} and record["method"] == METHOD and "attack" not in record
    assert record["results"] == {"loss": None, "accuracy": 0.5}
    assert record["cost"] == {"seconds": 1.235, "peak_memory_gb": 2.0}
    assert record["environment"]["torch"] == torch.__version__ and record["environment"]["device"] == "cpu"
    assert record["environment"]["processor"]
    assert find_record(tmp_path, {**RUN, "method": {**METHOD, "ratio": 0.2}}) is None
    assert load_records(tmp_path) == [record]


def test_a_damaged_record_is_named(tmp_path):
    path = write_record(tmp_path, RUN, {}, Cost(), "cpu")
    path.write_text(path.read_text()[:20])
    with pytest.raises(UserError, match=f"{path.name}.*delete it"):
        find_record(tmp_path, RUN)


def test_values_stand_beside_their_record(tmp_path, monkeypatch):
    flags = {"percent_memorized_train": torch.tensor([1, 0, 1], dtype=torch.int8), "empty": torch.zeros(0)}
    path = write_record(tmp_path, RUN, {}, Cost(), "cpu", flags)
    found = read_values(path)
    assert found.keys() == flags.keys() and all(torch.equal(found[name], flags[name]) for name in flags)
    assert len(load_records(tmp_path)) == 1
    write_record(tmp_path, RUN, {}, Cost(), "cpu")
    assert read_values(path) == {}  # never those of an earlier run
    path.with_suffix(".safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        read_values(path)
    path.unlink()
    monkeypatch.setattr(files, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_record(tmp_path, RUN, {}, Cost(), "cpu", flags)
    assert read_values(path) and not path.exists()  # a finished record always has its values


def _write_many(folder, worker):
    for number in range(20):
        write_record(
            folder, {"kind": "train", "data": {"n": number % 5}}, {"worker": worker, "text": "x" * 10000}, Cost(), "cpu"
        )


def test_many_writers_leave_whole_records_and_nothing_else(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(tmp_path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(load_records(tmp_path)) == len(list((tmp_path / "records").iterdir())) == 5


@pytest.mark.parametrize("part, name", [("cost", "seconds"), ("cost", "peak_memory_gb"), ("results", "perplexity"),
                                        ("results", "percent_zeroed")])  # fmt: skip
@pytest.mark.parametrize("value", ["abc", True, 10**400, [1.0], {}], ids=["text", "bool", "huge", "list", "object"])
def test_what_is_no_number_is_damage(tmp_path, part, name, value):
    path = write_record(tmp_path, RUN, {"perplexity": 2.0}, Cost(1.0, None), "cpu")
    assert read_record(path)["cost"] == {"seconds": 1.0, "peak_memory_gb": None}
    content = json.loads(path.read_text())
    content[part][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"is damaged \({part}.{name} is no number\)"):
        read_record(path)


def test_what_no_record_can_hold_is_null(tmp_path):
    found = read_record(write_record(tmp_path, RUN, {"perplexity": 1e304, "loss_two": float("nan")}, Cost(), "cpu"))
    assert found["results"] == {"perplexity": None, "loss_two": None}


def test_costs_add_up_and_an_unknown_one_stays_unknown():
    assert Cost(1.0, 2.0) + Cost(2.0, 1.0) == Cost(3.0, 2.0)
    assert Cost(1.0, None) + Cost(2.0, 1.0) == UNKNOWN == Cost(None, None)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
def test_cost_is_measured():
    with measured(torch.device("cpu")) as nothing:
        pass
    with measured(torch.device("cpu")) as cost:
        block = torch.ones(50_000_000)
    del block
    with measured(torch.device("cpu")) as after:
        pass
    assert cost.seconds > 0 and 0.15 < cost.peak_memory_gb - nothing.peak_memory_gb < 0.3
    assert after.peak_memory_gb < cost.peak_memory_gb - 0.15  # a peak is forgotten


def test_a_record_with_other_settings_than_its_name_says_is_refused(tmp_path):
    path = write_record(tmp_path, RUN, {"perplexity": 2.0}, Cost(), "cpu")
    content = json.loads(path.read_text())
    files.write_json(path, {**content, "results": {"perplexity": 3.0}, "environment": {}})  # no part of the identity
    assert find_record(tmp_path, RUN)["results"] == {"perplexity": 3.0}
    other = {**content, "method": {**METHOD, "ratio": 0.2}}
    for change in (other, {**content, "parent": "q"}, {**content, "data": {}}):
        files.write_json(path, change)
        for read in (lambda: find_record(tmp_path, RUN), lambda: load_records(tmp_path)):
            with pytest.raises(UserError, match=f"{path.name}: its settings are those of another.*delete it and run"):
                read()
    assert find_record(tmp_path, other) is None
    files.write_json(path.with_name("mine.json"), other)  # a name that says nothing
    path.unlink()
    assert load_records(tmp_path) == [other]
