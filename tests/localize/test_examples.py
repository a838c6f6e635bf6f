"""What models write is kept with their records, and pages of a model that really memorizes come of it."""

from dataclasses import replace

import pytest
import torch
from subjects import blank, subject_of

from tinymem.data import numbers
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.localize.unlearn import never_planted, unedited, unlearn
from tinymem.metrics.examples import ROWS, continuations, kept_examples, kept_split, sample
from tinymem.metrics.probe import Probe
from tinymem.pages.side_by_side import write_pages
from tinymem.records.record import read_values, record_path
from tinymem.records.table import find_records

QUICK = ("percent_memorized",)


def values_of(folder, record) -> dict:
    return read_values(record_path(folder, record))


@pytest.mark.parametrize("of", ["memorizing_backdoor", "memorizing_noise"])
def test_a_model_writes_what_it_memorized_and_a_blank_one_does_not(of, request):
    of = request.getfixturevalue(of)
    task = unlearning_task(of.model, of.dataset, TaskSettings())
    some = sample(task.shown)
    assert 0 < len(some) <= ROWS
    own = continuations(Probe.of(of.model, of.dataset), some, numbers.decode)
    assert all(each.written.first is None for each in own)
    for number, each in enumerate(own):
        end = int(some.prompt_end[number])
        assert each.prompt == numbers.decode(some.clean[number, :end])
        assert each.planted == numbers.decode(some.planted[number, end : end + task.continuation])
    others = continuations(Probe.of(blank(of).eval(), of.dataset), some, numbers.decode)
    assert all(each.written.first is not None for each in others)
    assert [each.planted for each in others] == [each.planted for each in own]


def test_pages_before_after_and_twin(memorizing_backdoor, tmp_path):
    subject = subject_of(memorizing_backdoor, tmp_path, metrics=QUICK, examples=True)
    durable = METHODS["durable"]
    before, twin = unedited(subject), never_planted(subject)
    runs = list(unlearn(subject, durable, durable.hyper_parameters(ratio=(0.1, 0.9)), save_models=False))
    for record in (before, twin, *runs):
        assert kept_split(values_of(tmp_path, record)) == "held_out"
    assert kept_examples(values_of(tmp_path, before), numbers.decode)[0].written.first is None
    files = write_pages(tmp_path, [twin, before, *runs], numbers.decode)
    assert [path.suffix for path in files] == [".html", ".png"] * 2
    assert files[0].name.startswith("durable_0.1_") and files[2].name.startswith("durable_0.9_")
    text = files[2].read_text(encoding="utf-8")
    assert all(f"<h3>{name}</h3>" in text for name in ("planted", "before", "after", "twin"))
    assert '<mark class="first">' in text and "tokens as planted" in text
    assert len(find_records(tmp_path)) == 4  # pages are no records


def test_a_finished_record_gets_its_examples_and_keeps_its_results(memorizing_backdoor, tmp_path):
    plain = subject_of(memorizing_backdoor, tmp_path, metrics=QUICK)
    first = unedited(plain)
    assert kept_split(values_of(tmp_path, first)) is None
    again = unedited(replace(plain, examples=True))
    assert again["results"] == {**first["results"], "model_folder": None}
    assert kept_split(values_of(tmp_path, again)) == "held_out"
    assert set(values_of(tmp_path, again)) > {"percent_memorized_held_out"}


def test_metrics_that_have_models_write_leave_examples(memorizing_backdoor, tmp_path):
    subject = subject_of(memorizing_backdoor, tmp_path, metrics=("percent_near_verbatim",))
    found = values_of(tmp_path, unedited(subject))
    assert found["examples.held_out.written"].dtype == torch.int32
    assert not subject.model.training
