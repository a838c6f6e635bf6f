"""Files that cannot be read, and running out of memory, which is not the file's fault."""

import pytest
import torch

from tinymem.cli.unlearning import enough_memory
from tinymem.errors import Failures, NotFinite, OutOfMemory, UserError, reading, renamed


def test_whatever_goes_wrong_while_reading_is_said_of_the_file_in_one_line():
    with pytest.raises(UserError) as raised:
        with reading("a {folder}/file", "damaged ({why}); delete it"):
            raise ValueError("\n{bad} header\nand more")
    assert str(raised.value) == "a {folder}/file: damaged ({bad} header); delete it"


@pytest.mark.parametrize(
    "message, flag, said",
    [
        ("--metrics a --metrics: no such metric", "--attack_metrics", "--attack_metrics a --metrics: no such metric"),
        ("--model_name a: no such folder", "--attack_metrics", "--model_name a: no such folder"),
        ("--metrics a: b", "", "a: b"),
    ],
)
def test_an_error_names_the_flag_that_was_given(message, flag, said):
    with pytest.raises(OutOfMemory) as raised, renamed("--metrics", flag):
        raise OutOfMemory(message)
    assert str(raised.value) == said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_running_out_of_memory_is_not_the_files_fault(error):
    with pytest.raises(type(error)) as raised:
        with reading("file", "damaged"):
            raise error
    assert raised.value is error
    with pytest.raises(OutOfMemory, match="greedy: out of memory .*--microbatch 1"):
        with enough_memory("greedy"):
            raise error


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        with enough_memory("greedy"):
            raise RuntimeError("shapes do not fit")


def test_failures_for_the_same_reason_say_it_once():
    failures = Failures()
    for message in (
        "attack a: here: not finite; b",
        "attack a: twin: not finite; b",
        "attack a: here: not finite; b",
        "c: ruined",
    ):
        failures.append(NotFinite(message))
    with pytest.raises(NotFinite) as raised:
        failures.end()
    assert str(raised.value) == "attack a: here, twin: not finite; b; c: ruined"
    assert str(Failures([NotFinite("alone")])[0]) == "alone"
