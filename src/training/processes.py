"""Several processes that train one model together: one per GPU, or a few on a CPU.

`accelerate launch` and `torchrun` start the same script several times. The first process does everything; the others
wait, and take part in the trainings that it starts. Every process has the whole model and runs its rows of each batch;
gradients and losses are summed, so that a step is that of the whole batch in one process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from tinymem.errors import UserError
from tinymem.training.step import Side

PATIENCE = timedelta(days=30)  # the others wait while the first process measures and attacks
LETTING_GO = 0.5  # seconds: far more than a thread needs to drop the tensors of the last message


@dataclass(frozen=True)
class Processes:
    """The processes of a run. The default is one alone, for which nothing here does anything.

    rank, size   number of this process, from 0, and how many there are
    sharded      divide weights, gradients and optimizer state among them while training (FSDP)
    model        what the others need to open the model; any object that can be pickled
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False
    model: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process measures, prints and saves."""
        return self.rank == 0

    def check_divides(self, rows: Sequence[int]) -> None:
        """Raise UserError unless each of these numbers of rows can be shared equally."""
        if any(count % self.size for count in rows):
            parts = " and ".join(map(str, rows))
            raise UserError(
                f"--batch_size: {self.size} processes cannot share {parts} rows of a step equally; give another "
                "--batch_size or --forget_share, or another --num_processes"
            )

    def part(self, side: Side) -> Side:
        """Return the rows of this process."""
        if self.size == 1:
            return side
        size = len(side) // self.size
        return side.split(size)[self.rank]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors, in place, by their sums over all processes; those that are sharded are sums already."""
        if self.size > 1:
            for tensor in (tensor for tensor in tensors if not hasattr(tensor, "full_tensor")):
                torch.distributed.all_reduce(tensor)

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors, in place, by those of the first process. Every process must call it."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process. Every process must call it."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag))
        torch.distributed.all_reduce(count)
        return bool(count)

    def send(self, message: Any) -> Any:
        """Return the first process's message in all of them. Every process must call it."""
        if self.size == 1:
            return message
        box = [message]
        torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


ALONE = Processes()


def started() -> Processes:
    """Return the processes that a launcher has started, before they can talk to each other (`join`).

    Raise UserError if the environment does not say how they can.
    """
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if size > 1 and not all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")):
        raise UserError(
            f"WORLD_SIZE={size}, and no MASTER_ADDR or MASTER_PORT: start it with accelerate launch or torchrun"
        )
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    return Processes(rank, size, sharded) if size > 1 else ALONE


def join(device: torch.device) -> None:
    """Let the started processes talk to each other, until `leave`. device: that of this process's model."""
    # Its functions take the group as a default. Imported later, as transformers does, they would keep it for ever.
    import torch.distributed.nn.functional

    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)


def leave(processes: Processes) -> None:
    """End what `join` has begun, with its threads: one that still drops a tensor when Python ends aborts the process."""
    torch.distributed.destroy_process_group()
    if processes.sharded:  # caches of sharded tensors keep the group; its threads must be idle
        time.sleep(LETTING_GO)


def own_device(name: str) -> str:
    """Return the device of this process: for auto and cuda its own GPU, where there are GPUs."""
    local = os.environ.get("LOCAL_RANK", "0")
    return f"cuda:{local}" if name in ("auto", "cuda") and torch.cuda.is_available() else name
