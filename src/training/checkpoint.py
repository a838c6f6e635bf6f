"""The files of a training run:

RUN/run.json                 settings
RUN/state.safetensors        the training state: weights, optimizer, regularizers, position in the epoch
RUN/metrics.json, .csv       one row per measured epoch
RUN/epoch_<n>/               an ordinary Hugging Face model folder (for text, with the tokenizer); also
                             tinymem.json (settings, epoch) and the training state of that epoch
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinymem import files
from tinymem.errors import UserError, reading
from tinymem.inputs import AGAIN, check_file, check_value, parse_json, read_settings
from tinymem.models.edit import Edit, Lazy, Weights, applied, stored
from tinymem.models.tinymem import ModelSettings
from tinymem.options import check_options, option
from tinymem.records.curves import check_rows
from tinymem.records.table import write_csv
from tinymem.regularizers.protocol import Regularizer
from tinymem.training.optimizer import masters_of
from tinymem.training.processes import Processes
from tinymem.training.settings import RETRAIN, RunSettings

STATE = "state.safetensors"
SETTINGS = "tinymem.json"
CONFIG = "config.json"
METRICS = "metrics.json"
DERIVED = ("finetuned", "unlearned", "scores")  # folders in a run with results derived from its models
OTHER_STATE = "delete it to resume from the last complete checkpoint"


@dataclass
class Progress:
    """The position and history of a run.

    epoch, step    finished epochs, and finished steps of the current epoch
    loss_sum, step_seconds    sums of losses and training seconds over these steps
    epoch_seconds  training seconds of every finished epoch, excluding measuring and saving
    seconds        seconds of the whole run so far, over all sessions, including measuring and saving
    rows           measurements so far
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
    """Write everything that training needs to resume, as one safetensors file."""
    from safetensors.torch import save_file

    tensors = {name: tensor.cpu().contiguous() for name, tensor in _state(model, optimizer, regularizers).items()}
    metadata = {"progress": json.dumps(vars(progress))}
    files.write_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_state(
    path: Path, model, optimizer, regularizers: Sequence[Regularizer], remedy: str = OTHER_STATE
) -> Progress:
    """Load a saved state into model, optimizer and regularizers. Raise UserError for a damaged or foreign file.

    remedy: advice about such a file, for the message.
    """
    from safetensors import safe_open

    _create_buffers(optimizer)
    progress = read_progress(path, remedy)
    with reading(path, f"damaged ({{why}}); {remedy}"):
        with safe_open(path, framework="pt") as file, torch.no_grad():
            names = set(file.keys())
            for name, tensor in _state(model, optimizer, regularizers).items():
                if name.startswith("optimizer.") and name not in names:  # no gradient had reached this weight
                    continue
                kept = file.get_tensor(name)
                if kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                    raise ValueError(f"{name} is {kept.dtype} {tuple(kept.shape)}, not {tuple(tensor.shape)}")
                tensor.copy_(kept)
    return progress


def share_state(model, optimizer, regularizers: Sequence[Regularizer], processes: Processes) -> None:
    """Copy the state that the first process has loaded to all processes. Every process must call this."""
    if not processes.is_first:
        _create_buffers(optimizer)
    with torch.no_grad():
        processes.share(_state(model, optimizer, regularizers).values())


def _create_buffers(optimizer) -> None:
    """Create the buffers that AdamW creates at the first step, so that a state can be loaded into them."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            step = torch.zeros((), device=p.device)
            optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def leads_to(path: Path, epoch: int) -> bool:
    """Return whether a state exists and is before the end of this epoch, for a training without a run folder."""
    return path.exists() and read_progress(path, AGAIN).epoch < epoch


def read_progress(path: Path, remedy: str = OTHER_STATE) -> Progress:
    """Return the progress in a saved state. Raise UserError, with this remedy, for a damaged or foreign file."""
    from safetensors import safe_open

    check_file(path, share=float("inf"))
    with reading(path, f"damaged ({{why}}); {remedy}"):
        with safe_open(path, framework="pt") as file:
            text = file.metadata()["progress"]
    progress = read_settings(Progress, parse_json(text, path, remedy), path, remedy, whole=True)
    check_rows(progress.rows, path, remedy)
    return progress


def _state(model, optimizer, regularizers: Sequence[Regularizer]) -> dict[str, torch.Tensor]:
    """Return every tensor of the training state by name, without copying. Only trained weights are included."""
    tensors, masters = {}, masters_of(optimizer)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tensors[f"model.{name}"] = parameter.detach()
        if parameter in masters:
            tensors[f"master.{name}"] = masters[parameter]
        stepped = masters.get(parameter, parameter)
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[stepped].items()}
    for i, regularizer in enumerate(regularizers):
        tensors |= {f"regularizer.{i}.{name}": tensor for name, tensor in regularizer.state.items()}
    return tensors


def latest_state(run: Path) -> Path | None:
    """Return the state to resume from: the rolling one, otherwise the last complete checkpoint's."""
    if (run / STATE).exists():
        return run / STATE
    last = latest_checkpoint(run)
    return None if last is None else last / STATE


def latest_checkpoint(run: Path) -> Path | None:
    """Return the folder of a run's last complete checkpoint, or None."""
    return max((path for path in _checkpoints(run) if (path / STATE).exists()), key=epoch_of, default=None)


def _checkpoints(run: Path) -> list[Path]:
    return [path for path in run.glob("epoch_*") if re.fullmatch(r"epoch_\d{1,10}", path.name)]


def has_begun(run: Path) -> bool:
    """Return whether a folder contains any work of a run."""
    return latest_state(run) is not None or (run / METRICS).exists() or (run / "records").exists()


def seconds_spent(run: Path) -> float:
    """Return the seconds that a run, finished or not, has taken over all its sessions; 0 if there is no run."""
    state = latest_state(run)
    return read_progress(state).seconds if state else 0.0


def clear(run: Path) -> None:
    """Delete a run (except its settings) and everything derived from its models, so that it starts from scratch.

    Sweeps identify results by settings, so they would take results on the old models for results on the new ones.

    Marks of finished work are deleted before the work, and each folder at once: if this is interrupted, the run looks
    interrupted too. The last checkpoint is deleted first, so that no checkpoint before the one to resume from is
    missing.
    """
    for name in ("records", *DERIVED):
        files.remove_folder(run / name)
    for name in (METRICS, "metrics.csv", STATE):
        (run / name).unlink(missing_ok=True)
    for folder in sorted(_checkpoints(run), key=epoch_of, reverse=True):
        files.remove_folder(folder)


def epoch_of(folder: Path) -> int:
    """Return the n of a folder epoch_<n>."""
    return int(folder.name.removeprefix("epoch_"))


def save_model(
    folder: Path,
    model,
    details: dict[str, Any],
    tokenizer=None,
    write_more=lambda temporary: None,
    edits: Sequence[Edit] = (),
) -> Path:
    """Write an ordinary model folder atomically, with `details` (settings, origin) in tinymem.json. Return its path.

    tokenizer: a text model's, saved so that the folder is self-contained; None for number sequences. edits: applied to
    the saved weights only; the model's stay.
    """

    def write(temporary: Path) -> None:
        with applied(model, *edits):
            model.save_pretrained(temporary, safe_serialization=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        (temporary / SETTINGS).write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
        write_more(temporary)

    return files.write_folder(folder, write)


def trained_weights(folder: str | Path) -> Weights:
    """Return the weights at the end of a checkpoint's training, from its state, before anything was deleted from them.

    Raise UserError for a folder without a state.
    """
    path = Path(folder) / STATE
    if not path.exists():
        raise UserError(f"{folder}: no {STATE} in it; give a checkpoint in the folder of its training")
    check_file(path, share=float("inf"))
    with reading(path, f"damaged ({{why}}); {RETRAIN}"):
        values = stored(path)
    names = [name.removeprefix("model.") for name in values if name.startswith("model.")]
    return Weights(Lazy({name: partial(values.__getitem__, f"model.{name}") for name in names}))


def load_details(folder: str | Path) -> dict[str, Any]:
    """Return the tinymem.json of a model folder. Raise UserError if it is missing (a model from elsewhere)."""
    path = Path(folder) / SETTINGS
    if not path.exists():
        if Path(folder).is_file():
            raise UserError(f"{folder}: is a file; give a checkpoint's folder, such as runs/NAME/epoch_50")
        if not Path(folder).exists():
            raise UserError(f"{folder}: no such folder; give a checkpoint of a training, or one of results/models")
        raise UserError(
            f"{folder}: not a TinyMem checkpoint (no {SETTINGS} in it); give a folder such as runs/NAME/epoch_50, or "
            "use src/localize/prod_grad.py (tinymem unlearn-lm), which takes any model, with --model_name"
        )
    details = files.read_json(path, required=("settings",), remedy=RETRAIN)
    for name, kind in (("settings", dict[str, Any]), ("epoch", int), ("finetuning", dict[str, Any])):
        if name in details:
            check_value(details[name], kind, name, path, RETRAIN)
    return details


def made_by(folder: str | Path) -> str:
    """Return the name of the method with which TinyMem made an edited model; "" for any other model."""
    path = Path(folder) / SETTINGS
    about = files.read_json(path, remedy=RETRAIN).get("made_by") if path.is_file() else None
    method = about.get("method") if isinstance(about, dict) else None
    return str(method.get("name", "")) if isinstance(method, dict) else ""


def load_trained(folder: str | Path) -> dict[str, Any]:
    """Return the tinymem.json of a training run's checkpoint. Raise UserError for an edited or fine-tuned model."""
    details = load_details(folder)
    if "epoch" not in details or "finetuning" in details:
        raise UserError(f"{folder}: this model was edited or fine-tuned; give a checkpoint of a training run")
    sizes = RunSettings.from_flat(details["settings"], Path(folder) / SETTINGS).model  # an error names the file
    _check_sizes(sizes, Path(folder))
    return details


def _check_sizes(sizes: ModelSettings, folder: Path) -> None:
    """Raise UserError if the sizes of the model in a folder are not those of its training."""
    if not (folder / CONFIG).is_file():
        return
    config = files.read_json(folder / CONFIG, remedy=RETRAIN)
    if not isinstance(config, dict):  # reported when the model is opened
        return
    for name, own in (("n_layers", "n_layer"), ("n_heads", "n_head"), ("n_embd", "n_embd")):
        stated, found = getattr(sizes, name), config.get(own)
        if found is not None and found != stated:
            raise UserError(
                f"{folder}: {SETTINGS} says {name} {stated}, {CONFIG} {own} {found}; they are of different models"
            )


def with_real_name(folder: Path) -> Path:
    """Return the folder's path with its real name at the end, which "." and ".." lack."""
    return folder.resolve() if folder.name in ("", "..") else folder


def place_beside(folder: Path) -> Path:
    """Return the folder for results derived from a model: the training run of a checkpoint, otherwise runs/NAME.

    A model without a training state was copied or published, so its parent folder is not a run.
    """
    folder = with_real_name(folder)
    return folder.parent if (folder / STATE).exists() else Path("runs") / folder.name


def unlearned_folder(model: Path) -> Path:
    """Return the folder for the unlearning runs on a model: records and edited models."""
    return place_beside(model) / "unlearned" / with_real_name(model).name


def save_metrics(run: Path, rows: list[dict[str, Any]]) -> None:
    """Rewrite metrics.json and metrics.csv completely."""
    files.write_json(run / METRICS, rows)
    write_csv(run / "metrics.csv", rows)


def load_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.json. If it was deleted, restore it from the last saved state."""
    path, state = run / METRICS, latest_state(run)
    if not path.exists() and state is not None:
        save_metrics(run, read_progress(state).rows)
    return check_rows(files.read_json(path), path, "delete it and run again")
