"""A record holds results of one environment: nothing is added with other versions or on another kind of device."""

import json
from dataclasses import replace

import pytest
from subjects import subject_of

from tinymem.errors import UserError
from tinymem.localize.registry import METHODS
from tinymem.localize.subject import Run
from tinymem.localize.unlearn import unedited, unlearn
from tinymem.records.identity import UNEDITED
from tinymem.records.record import record_path

QUICK = ("percent_memorized",)
MORE = (*QUICK, "exact_match_share")


def made_elsewhere(folder, record, **environment):
    """Writes a record as if it had been made with these versions or on this device."""
    path = record_path(folder, record)
    path.write_text(json.dumps({**record, "environment": {**record["environment"], **environment}}))


@pytest.mark.parametrize("elsewhere", [{"torch": "1.0.0"}, {"device": "cuda:0"}, {"tinymem": "0.0.1"}])
def test_results_of_another_environment_are_not_added_to(memorizing_backdoor, tmp_path, elsewhere):
    subject = subject_of(memorizing_backdoor, tmp_path, metrics=QUICK)
    made_elsewhere(tmp_path, unedited(subject), **elsewhere)
    assert unedited(subject)["environment"] | elsewhere == unedited(subject)["environment"]  # it lacks nothing
    more = replace(subject, metrics=MORE)
    with pytest.raises(UserError, match=r"\.json: made with .* cannot be added; give --force"):
        unedited(more)
    again = unedited(more, force=True)
    assert again["environment"]["device"] == "cpu" and again["results"]["exact_match_share_train"] > 0.9
    assert not {"torch": "1.0.0", "tinymem": "0.0.1"}.items() & again["environment"].items()


def test_a_method_is_not_run_for_a_record_that_cannot_be_completed(memorizing_backdoor, tmp_path, monkeypatch):
    subject = subject_of(memorizing_backdoor, tmp_path, metrics=QUICK)
    durable = METHODS["durable"]
    hp = durable.hyper_parameters(ratio=(0.1,))
    unedited(subject)
    (record,) = unlearn(subject, durable, hp, save_models=False)
    made_elsewhere(tmp_path, record, torch="1.0.0")
    more = replace(subject, metrics=MORE)
    unedited(more)
    monkeypatch.setattr("tinymem.localize.unlearn.edits", None)
    with pytest.raises(UserError, match="made with .*torch 1.0.0"):
        list(unlearn(more, durable, hp, save_models=False))


def test_other_builds_and_other_gpus_are_the_same_environment(memorizing_backdoor, tmp_path):
    subject = subject_of(memorizing_backdoor, tmp_path, metrics=QUICK)
    record = unedited(subject)
    version = record["environment"]["torch"].partition("+")[0]
    made_elsewhere(tmp_path, record, torch=f"{version}+cu999", device="cpu:1")
    assert "exact_match_share_train" in unedited(replace(subject, metrics=MORE))["results"]


def test_attached_results_leave_the_environment_and_the_cost(memorizing_backdoor, tmp_path):
    subject = subject_of(memorizing_backdoor, tmp_path, metrics=QUICK)
    made_elsewhere(tmp_path, unedited(subject), torch="1.0.0")
    run = Run(subject, {"kind": UNEDITED, **subject.identity})
    run.attach({"found": 1.0, "lost": float("nan")})
    assert run.finished["environment"]["torch"] == "1.0.0"
    assert run.finished["results"]["found"] == 1.0 and run.finished["results"]["lost"] is None
