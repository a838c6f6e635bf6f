"""What edits made elsewhere may use: the planted models of the leaderboard, and the sequences shown to a method."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from tinymem import files
from tinymem.data.build import load_dataset
from tinymem.errors import UserError
from tinymem.leaderboard.cases import TASK
from tinymem.leaderboard.protocol import Bench
from tinymem.localize.task import unlearning_task
from tinymem.models.tinymem import load_model


def export(benches: Iterable[Bench], folder: Path, data_dir: str, device) -> list[Path]:
    """Write FOLDER/seedN.safetensors per model: forget and retain, token ids (sequences, T), and prompt_end of forget.

    Return the files. Raise UserError for a model that has not been trained yet.
    """
    from safetensors.torch import save_file

    written = []
    for bench in benches:
        place = bench.checkpoint.path
        if not place.is_dir():
            raise UserError(f"{place}: no such model; run experiments/leaderboard.py with --methods anchor first")
        task = unlearning_task(load_model(place, device), load_dataset(bench.settings.data, data_dir), TASK)
        tensors = {"forget": task.forget.planted, "prompt_end": task.forget.prompt_end, "retain": task.retain}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        about = {"model": str(place)}
        path = folder / f"seed{bench.seed}.safetensors"
        files.write_file(path, partial(save_file, tensors, metadata=about))
        written.append(path)
    return written
