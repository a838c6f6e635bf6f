"""What is on disk of a training run.

RUN/run.json                 settings
RUN/state.safetensors        where training stands: weights, optimizer, regularizers, position in the epoch
RUN/metrics.json, .csv       one row a measured epoch
RUN/epoch_<n>/               an ordinary Hugging Face model folder, of text models with the tokenizer; tinymem.json
                             (settings, epoch) and the training state of that epoch beside it
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tinymem import files
from tinymem.errors import UserError, reading
from tinymem.inputs import check_file, check_value, parse_json, read_settings
from tinymem.options import check_options, option
from tinymem.records.table import write_csv
from tinymem.regularizers.protocol import Regularizer
from tinymem.training.settings import RETRAIN, RunSettings

STATE = "state.safetensors"
SETTINGS = "tinymem.json"
METRICS = "metrics.json"
DERIVED = ("finetuned", "unlearned", "scores")  # folders of a run with what is made of its models
OTHER_STATE = "delete it to go on from the last whole checkpoint"


@dataclass
class Progress:
    """Where a run stands.

    epoch, step    epochs finished, steps done in the next one
    loss_sum, step_seconds    summed over these steps: their losses, the time that they took
    epoch_seconds  the same time for every finished epoch: training alone, without measuring and saving
    seconds        time of the whole run so far, measuring and saving included, over all its sessions
    rows           measured so far
    """

    epoch: int = option(0, "", low=0)
    step: int = option(0, "", low=0)
    loss_sum: float = option(0.0, "")
    step_seconds: float = option(0.0, "", low=0.0)
    epoch_seconds: list[float] = field(default_factory=list)
    seconds: float = option(0.0, "", low=0.0)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_options(self)


def save_state(path: Path, model, optimizer, regularizers: Sequence[Regularizer], progress: Progress) -> None:
    """Writes everything that training needs to go on, as one safetensors file."""
    from safetensors.torch import save_file

    tensors = {name: tensor.cpu().contiguous() for name, tensor in _state(model, optimizer, regularizers).items()}
    metadata = {"progress": json.dumps(vars(progress))}
    files.write_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_state(path: Path, model, optimizer, regularizers: Sequence[Regularizer]) -> Progress:
    """Puts a saved state into model, optimizer and regularizers. UserError for a damaged or foreign file."""
    from safetensors import safe_open

    for group in optimizer.param_groups:  # AdamW makes its buffers at the first step; here they are filled instead
        for p in group["params"]:
            step = torch.zeros((), device=p.device)
            optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    progress = read_progress(path)
    with reading(path, f"damaged ({{why}}); {OTHER_STATE}"):
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for name, tensor in _state(model, optimizer, regularizers).items():
                kept = file.get_tensor(name)
                if kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                    raise ValueError(f"{name} is {kept.dtype} {tuple(kept.shape)}, not {tuple(tensor.shape)}")
                tensor.copy_(kept)
    return progress


def read_progress(path: Path) -> Progress:
    """Return where the run of a saved state stands. UserError for a damaged or foreign file."""
    from safetensors import safe_open

    check_file(path, share=float("inf"))
    with reading(path, f"damaged ({{why}}); {OTHER_STATE}"):
        with safe_open(path, framework="pt") as file:
            text = file.metadata()["progress"]
    progress = read_settings(Progress, parse_json(text, path, OTHER_STATE), path, OTHER_STATE, whole=True)
    check_rows(progress.rows, path, OTHER_STATE)
    return progress


def check_rows(rows: Any, path: Path, remedy: str) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics. UserError unless each is an object with its epoch."""
    check_value(rows, list[dict[str, Any]], "rows", path, remedy)
    for row in rows:
        check_value(row.get("epoch"), int, "epoch", path, remedy)
    return rows


def _state(model, optimizer, regularizers: Sequence[Regularizer]) -> dict[str, torch.Tensor]:
    """Every tensor of the training state by name, not copied."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    for i, regularizer in enumerate(regularizers):
        tensors |= {f"regularizer.{i}.{name}": tensor for name, tensor in regularizer.state.items()}
    return tensors


def latest_state(run: Path) -> Path | None:
    """The state to go on from: the rolling one, or else that of the last whole checkpoint."""
    if (run / STATE).exists():
        return run / STATE
    folders = [path for path in _checkpoints(run) if (path / STATE).exists()]
    return max(folders, key=epoch_of) / STATE if folders else None


def _checkpoints(run: Path) -> list[Path]:
    return [path for path in run.glob("epoch_*") if re.fullmatch(r"epoch_\d{1,10}", path.name)]


def has_begun(run: Path) -> bool:
    """Whether there is any work of a run in its folder."""
    return latest_state(run) is not None or (run / METRICS).exists() or (run / "records").exists()


def seconds_spent(run: Path) -> float:
    """What a run, finished or not, has taken so far over all its sessions; 0 where there is none."""
    state = latest_state(run)
    return read_progress(state).seconds if state else 0.0


def clear(run: Path) -> None:
    """Forgets a run, its settings excepted, so that it starts from the beginning; what was made of its models too.

    Sweeps know what is done by the settings: they would take results on the old models for those on the new ones.

    What says that something is done goes before what was done, and each folder at once: killed in between, the run is
    one that was interrupted. The last checkpoint goes first, so that those before the one it resumes from are all there.
    """
    for name in ("records", *DERIVED):
        files.remove_folder(run / name)
    for name in (METRICS, "metrics.csv", STATE):
        (run / name).unlink(missing_ok=True)
    for folder in sorted(_checkpoints(run), key=epoch_of, reverse=True):
        files.remove_folder(folder)


def epoch_of(folder: Path) -> int:
    """The n of a folder epoch_<n>."""
    return int(folder.name.removeprefix("epoch_"))


def save_model(folder: Path, model, details: dict[str, Any], tokenizer=None, write_more=lambda temporary: None) -> Path:
    """Writes an ordinary model folder, atomically, with `details` (settings and origin) in tinymem.json.

    tokenizer: a text model's, kept with it so that the folder stands by itself; None for number sequences.
    """

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary, safe_serialization=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        (temporary / SETTINGS).write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
        write_more(temporary)

    return files.write_folder(folder, write)


def load_details(folder: str | Path) -> dict[str, Any]:
    """The tinymem.json of a model folder. UserError when it is missing: TinyMem did not train this model."""
    path = Path(folder) / SETTINGS
    if not path.exists():
        raise UserError(
            f"{folder}: not a TinyMem checkpoint (no {SETTINGS} in it); give a folder such as runs/NAME/epoch_50"
        )
    details = files.read_json(path, required=("settings",), remedy=RETRAIN)
    for name, kind in (("settings", dict[str, Any]), ("epoch", int), ("finetuning", dict[str, Any])):
        if name in details:
            check_value(details[name], kind, name, path, RETRAIN)
    return details


def load_trained(folder: str | Path) -> dict[str, Any]:
    """The tinymem.json of a checkpoint of a training run. UserError for a model that was edited or fine-tuned."""
    details = load_details(folder)
    if "epoch" not in details or "finetuning" in details:
        raise UserError(f"{folder}: this model was edited or fine-tuned; give a checkpoint of a training run")
    RunSettings.from_flat(details["settings"], Path(folder) / SETTINGS)  # refused here, with the name of the file
    return details


def named(folder: Path) -> Path:
    """The folder by a path that ends in its name: "." and ".." have none."""
    return folder.resolve() if folder.name in ("", "..") else folder


def place_beside(folder: Path) -> Path:
    """The folder for what is made from a model: its training run's for a checkpoint, else runs/NAME.

    A model without training state was copied or published, and what stands around it belongs to others.
    """
    folder = named(folder)
    return folder.parent if (folder / STATE).exists() else Path("runs") / folder.name


def unlearned_folder(model: Path) -> Path:
    """Where the unlearning runs on a model go: records, edited models."""
    return place_beside(model) / "unlearned" / named(model).name


def save_metrics(run: Path, rows: list[dict[str, Any]]) -> None:
    """Writes metrics.json and metrics.csv anew, whole."""
    files.write_json(run / METRICS, rows)
    write_csv(run / "metrics.csv", rows)


def load_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.json; where it was deleted, those that the last saved state holds, written again."""
    path, state = run / METRICS, latest_state(run)
    if not path.exists() and state is not None:
        save_metrics(run, read_progress(state).rows)
    return check_rows(files.read_json(path), path, "delete it and run again")
