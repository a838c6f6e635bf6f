"""Several processes: their shares of a batch add up to it. tests/localize/test_several_processes.py has real ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import ROOT
from tiny import new_model, new_task

from tinymem.errors import UserError
from tinymem.localize.objective_method import sides
from tinymem.localize.registry import METHODS
from tinymem.training.processes import ALONE, Processes, started
from tinymem.training.reference import Reference
from tinymem.training.step import Side, backward

LOSSES = [name for name, method in METHODS.items() if method.is_objective]


def test_objectives_are_those_that_train_on_a_loss():
    assert len(LOSSES) == 13 and "npo" in LOSSES and not {"repselect", "task_vector", "durable"} & set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_shares_of_a_batch_add_up_to_its_gradient(name):
    """Rows count different numbers of tokens, so that a mean of the processes' means would be another."""
    model, task, method = new_model("gpt2").double(), new_task(8, 12, pad=13), METHODS[name]
    sets = sides(task, "continuation")
    chosen = [whole.select(torch.arange(8)) for whole in sets]
    assert len({int(side.mask[:4].sum()) for side in chosen} | {int(chosen[0].mask[4:].sum())}) > 1
    hp, reference = method.hyper_parameters(), Reference(model, 64, "float32")
    loss = lambda model, *both: method.module.loss(hp, model, reference, *both)  # noqa: E731
    with torch.no_grad():
        loss(model, *chosen)
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))

    def gradient(processes, microbatch=64):
        model.zero_grad()
        means = backward(model, loss, chosen, microbatch, processes=processes)
        return means, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    means, whole = gradient(ALONE)
    for microbatch in (64, 3):
        parts = [gradient(Processes(rank, 4), microbatch) for rank in range(4)]
        torch.testing.assert_close(sum(part for _, part in parts), whole, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sum(part for part, _ in parts), means)


def test_every_row_is_in_one_share():
    side = Side.of(torch.arange(24).view(6, 4))
    parts = [Processes(rank, 3).part(side) for rank in range(3)]
    assert [part.ids.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]] and ALONE.part(side) is side


def test_a_number_of_processes_that_does_not_divide_the_batch():
    Processes(0, 4).check_divides([16, 8])
    with pytest.raises(
        UserError, match="^--batch_size: 3 processes cannot share 16 and 9 rows of a step equally[^\n]*$"
    ):
        Processes(0, 3).check_divides([16, 9])
    ALONE.check_divides([7])


def test_what_a_launcher_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert started() == ALONE and ALONE.is_first and ALONE.send(3) == 3
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match="no MASTER_ADDR or MASTER_PORT: start it with accelerate launch or torchrun"):
        started()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert started() == Processes(2, 4) and not started().is_first
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert started().sharded


LEAVING = """
import os, torch
from tinymem.training.processes import Processes, join, leave
join(torch.device("cpu"))
torch.distributed.all_reduce(torch.ones(3))
import torch.distributed.nn.functional  # as transformers does when it opens a model
leave(Processes(0, 2))
for thread in os.listdir("/proc/self/task"):
    print(open(f"/proc/self/task/{thread}/comm").read().strip())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted there")
def test_no_thread_of_the_talk_is_left_at_the_end():
    """One that drops a tensor while Python ends aborts the process."""
    launcher = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", LEAVING]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **launcher}, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout and "gloo" not in ended.stdout
