"""Export what edits made elsewhere may use: the leaderboard's planted models and the sequences shown to a method."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from tinymem import files
from tinymem.leaderboard.bench import Bench
from tinymem.localize.task import unlearning_task


def export(benches: Iterable[Bench], folder: Path, data_dir: str, device) -> list[tuple[Path, Path]]:
    """Write FOLDER/seedN.safetensors per model: forget and retain token ids (sequences, T), and forget's prompt_end.

    Return each model's folder and file. Raise UserError for a model that has not been made yet.
    """
    from safetensors.torch import save_file

    written = []
    for bench in benches:
        model_folder = bench.model_folder(data_dir)
        task = unlearning_task(bench.open_model(model_folder)[0].to(device), bench.dataset(data_dir), bench.case.task)
        tensors = {"forget": task.forget.planted, "prompt_end": task.forget.prompt_end, "retain": task.retain}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        about = {"model": str(model_folder)}
        path = folder / f"seed{bench.seed}.safetensors"
        files.write_file(path, partial(save_file, tensors, metadata=about))
        written.append((model_folder, path))
    return written
