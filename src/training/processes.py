"""Train one model in several processes: one per GPU, or a few on a CPU.

`accelerate launch` and `torchrun` start the same script several times. The first process does everything; the others
only take part in the trainings that it starts. Every process has the whole model and runs its rows of each batch.
Gradients and losses are summed, so a step equals that of a single process with the whole batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from tinymem.errors import UserError

if TYPE_CHECKING:
    from tinymem.training.step import Side

PATIENCE = timedelta(days=30)  # the others wait while the first process measures and attacks
LETTING_GO = 0.5  # seconds: more than enough for a thread to drop the tensors of the last message


@dataclass(frozen=True)
class Processes:
    """The processes of a run. By default there is only one, and the methods do nothing.

    rank, size   number of this process, from 0, and number of processes
    sharded      divide weights, gradients and optimizer state among the processes while training (FSDP)
    model        what the other processes need to open the model; any object that can be pickled
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
        """Raise UserError unless each of these numbers of rows can be divided equally."""
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
        """Replace tensors, in place, with their sums over all processes. Sharded tensors are sums already."""
        if self.size > 1:
            for tensor in (tensor for tensor in tensors if not hasattr(tensor, "full_tensor")):
                torch.distributed.all_reduce(tensor)

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors, in place, with those of the first process. Every process must call this."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process. Every process must call this."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag))
        torch.distributed.all_reduce(count)
        return bool(count)

    def send(self, message: Any) -> Any:
        """Return the first process's message. Every process must call this."""
        if self.size == 1:
            return message
        box = [message]
        torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


ALONE = Processes()


def started() -> Processes:
    """Return the processes that a launcher has started. They can communicate only after `join`.

    Raise UserError if the environment does not say how to connect them.
    """
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if size > 1 and not all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")):
        raise UserError(
            f"WORLD_SIZE={size}, and no MASTER_ADDR or MASTER_PORT: start it with accelerate launch or torchrun"
        )
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    return Processes(rank, size, sharded) if size > 1 else ALONE


def join(device: torch.device) -> None:
    """Connect the started processes until `leave`. device: that of this process's model."""
    # Its functions have the group as a default. If transformers imported it later, they would hold the group for ever.
    import torch.distributed.nn.functional

    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)


def leave(processes: Processes) -> None:
    """Undo `join` and end its threads. A thread that still drops a tensor when Python exits would abort the process."""
    torch.distributed.destroy_process_group()
    if processes.sharded:  # caches of sharded tensors keep the group; its threads must be idle
        time.sleep(LETTING_GO)


def own_device(name: str) -> str:
    """Return the device of this process: for auto and cuda its own GPU, if there are GPUs."""
    local = os.environ.get("LOCAL_RANK", "0")
    return f"cuda:{local}" if name in ("auto", "cuda") and torch.cuda.is_available() else name
