"""Records of runs: identity, results, seconds, peak memory, versions, device. A run is finished if its record exists.

{"format": 2, "kind": ..., "parent": digest or null, SECTION: {...}, "results": {}, "cost": {}, "environment": {}}
in FOLDER/records/DIGEST.json. `tinymem.records.identity` defines the kinds, the sections and DIGEST.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.errors import UserError, reading
from tinymem.inputs import AGAIN, check_file
from tinymem.metrics.registry import Column, describe
from tinymem.records.cost import Cost
from tinymem.records.identity import (
    ATTACK,
    FORMAT,
    KINDS,
    MEASURED,
    SECTIONS,
    TWIN_ATTACK,
    UNLEARN,
    identity_of,
    record_digest,
)
from tinymem.records.sources import KEY as SOURCES

ANY = (-math.inf, math.inf)
BOUNDS = {"%": (0.0, 100.0), "0 to 1": (0.0, 1.0)}  # of metrics, by unit
BOUNDS |= dict.fromkeys(("perplexity", "perplexity_batch_mean"), (1.0, math.inf))  # by name
EXTENT = ("percent_zeroed", "percent_changed", "relative_change")  # size of an edit; see tinymem.models.edit.describe
NUMBERS = (*EXTENT, "train_loss", "train_perplexity")  # results that are numbers, beside metrics
ROUNDING = 1e-6
LARGEST = 2.0**1000  # a record has null in place of larger numbers
OUTCOME = ("results", "cost", "environment")
RECORD, DIGEST = "record", re.compile("[0-9a-f]{16}")  # metadata: digest of the record that values belong to
PACKAGES = ("tinymem", "torch", "transformers", "numpy")


def record_path(folder: str | Path, identity: Mapping[str, Any]) -> Path:
    """Return the path of the record with this identity, whether or not it exists."""
    return Path(folder) / "records" / f"{record_digest(identity)}.json"


def read_record(path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """Return one record. Raise UserError, naming the file, if it is damaged, of another format or of another run.

    A name of 16 hexadecimal digits must be the record's digest. remedy: advice about such a file, for the message.
    """
    record = files.read_json(path, remedy=remedy)
    check_record(record, path, remedy)
    if DIGEST.fullmatch(path.stem) and (digest := record_digest(record)) != path.stem:
        raise UserError(
            f"{path}: its settings are those of another record, {digest} (edited by hand, or renamed); {remedy}"
        )
    return record


def check_record(record: Any, path: Path, remedy: str = AGAIN) -> None:
    """Raise UserError, naming its file, if a record is damaged or of another format."""
    if is_format_1(record):
        raise _old_format(path)
    if problem := _problem(record):
        raise UserError(f"{path}: this file is damaged ({problem}); {remedy}")


def is_format_1(content: Any) -> bool:
    """Return whether a JSON file's content is a record of format 1: one flat dict of settings."""
    return isinstance(content, dict) and "settings" in content and "format" not in content


def _old_format(path: Path) -> UserError:
    place = path.parent.parent if path.parent.name == "records" else path.parent
    return UserError(f"{path}: a record of format 1; run `python -m tinymem.records upgrade {place}` first")


def _problem(record: Any) -> str | None:
    """Return the problem with a record, as text; None if there is none."""
    if not isinstance(record, dict):
        return "no object"
    if record.get("format") != FORMAT:
        return f"no record of format {FORMAT}"
    if record.get("kind") not in KINDS:
        return f"kind is none of {', '.join(KINDS)}"
    if not isinstance(record.get("parent"), (str, type(None))):
        return "parent is no digest"
    missing = [part for part in OUTCOME if part not in record]
    if missing:
        return f"no {', '.join(missing)}"
    for part in record.keys() - {"format", "kind", "parent"}:
        if part not in (*SECTIONS, *OUTCOME):  # an unknown section may distinguish runs
            return f"unknown section {part}"
        if not isinstance(record[part], dict):
            return f"{part} is no object"
    for name, value in record["cost"].items():
        if problem := _number_problem(value, (0.0, math.inf)):
            return f"cost.{name} {problem}"
    if problem := result_problem(record["results"]):
        return f"results.{problem}"
    needed = {UNLEARN: "method", MEASURED: "method", ATTACK: "attack", TWIN_ATTACK: "attack"}.get(record["kind"])
    if needed and "name" not in record.get(needed, {}):
        return f"no {needed}.name"
    if needed == "attack" and "parent" not in record:
        return "no parent"
    folder = record["results"].get("model_folder")
    if folder is not None and (not isinstance(folder, str) or Path(folder).is_absolute() or ".." in Path(folder).parts):
        return f"results.model_folder {folder!r} is no folder below the run's"
    names = [record[part]["name"] for part in ("method", "attack") if "name" in record.get(part, {})]
    return None if all(isinstance(name, str) for name in names) else "a method's name is no text"


def result_problem(results: Mapping[str, Any], largest: float = LARGEST) -> str | None:
    """Return the problem with a run's results, as text that begins with a name; None if there is none.

    Only metrics and NUMBERS are checked. largest: a number must be smaller.
    """
    for name, value in results.items():
        column = describe(name)
        if column or name in NUMBERS:
            if problem := _number_problem(value, limits(column) if column else ANY, largest):
                return f"{name} {problem}"
    return None


def limits(column: Column) -> tuple[float, float]:
    """Return the lowest and highest value of a metric's column, infinite if unbounded."""
    return BOUNDS.get(column.name, BOUNDS.get(column.unit, ANY))


def _number_problem(value: Any, ends: tuple[float, float], largest: float = LARGEST) -> str | None:
    """Return the problem with a number or null between these ends, as text; None if there is none."""
    if not _is_number(value, largest):
        return "is no number"
    if value is not None and not ends[0] - ROUNDING <= value <= ends[1] + ROUNDING:
        return f"{value:g} is not between {ends[0]:g} and {ends[1]:g}"
    return None


def _is_number(value: Any, largest: float = LARGEST) -> bool:
    """Return whether a value fits a float or is null, which stands for a number that is not finite."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or number and abs(value) < largest


def find_record(folder: str | Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of a finished run, or None.

    Raise UserError if the file is damaged, or if it is missing but the folder has records of format 1.
    """
    path = record_path(folder, identity)
    if path.exists():
        return read_record(path)
    for other in path.parent.glob("*.json"):
        with open(other, "rb") as file:
            start = file.read(40)
        if b'"settings"' in start and b'"format"' not in start:
            raise _old_format(other)
    return None


def write_record(
    folder: str | Path,
    identity: Mapping[str, Any],
    results: dict[str, Any],
    cost: Cost,
    device: str,
    values: Mapping[str, Any] | None = None,
    sources: Sequence[Mapping[str, str]] = (),
) -> Path:
    """Write the record of a finished run atomically. Results that are not finite numbers become null.

    values: per-example values of the results, as tensors by name; `read_values` reads them. sources: the user's files
    (see `tinymem.records.sources`).
    """
    path = record_path(folder, identity)
    write_values(path, values)  # first, so that every record has its values
    places = {SOURCES: list(sources)} if sources else {}
    record = {
        **identity_of(identity),
        "results": _all_finite(results),
        "cost": {name: value and round(value, 3) for name, value in asdict(cost).items()},
        "environment": {**environment(device), "auto_dtype": _auto_precision(device), **places},
    }
    return files.write_json(path, record)


def add_results(path: Path, record: Mapping[str, Any], results: Mapping[str, Any]) -> Path:
    """Write a record again with further results. All else stays: its cost, and the versions and device that made it."""
    return files.write_json(path, {**record, "results": {**record["results"], **_all_finite(results)}})


def write_values(path: Path, values: Mapping[str, Any] | None) -> None:
    """Write tensors by name next to the record at `path`, as .safetensors. None removes those of an earlier run."""
    beside = path.with_suffix(".safetensors")
    if values is None:
        beside.unlink(missing_ok=True)
        return
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in values.items()}
    files.write_file(beside, lambda temporary: save_file(tensors, temporary, metadata={RECORD: path.stem}))


def read_values(path: Path) -> dict[str, Any]:
    """Return the per-example values stored next to the record at `path`, as tensors by name; empty if there are none.

    Raise UserError if the file is damaged or belongs to another record.
    """
    beside = path.with_suffix(".safetensors")
    if not beside.exists():
        return {}
    from safetensors import safe_open

    again = "delete it and its record, and run again"
    check_file(beside, share=float("inf"))
    with reading(beside, f"this file is damaged ({{why}}); {again}"):
        with safe_open(beside, framework="pt") as file:
            owner = (file.metadata() or {}).get(RECORD, path.stem)
            values = {name: file.get_tensor(name) for name in file.keys()}
    if owner != path.stem and DIGEST.fullmatch(path.stem):
        raise UserError(f"{beside}: holds the values of another record, {owner}; {again}")
    if problem := _misshapen(values):
        raise UserError(f"{beside}: this file is damaged ({problem}); {again}")
    return values


def _misshapen(values: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a record's values (`metrics.evaluate.Measurement.tensors`) as text, or None."""
    from tinymem.metrics.examples import PARTS  # late: it loads torch

    examples = {name: tensor for name, tensor in values.items() if name.startswith("examples.")}
    for name, tensor in values.items():
        column = name.removesuffix(".weights").removesuffix(".groups")
        dimensions = 2 if name in examples else 1
        if tensor.dim() != dimensions or tensor.is_complex() or (name in examples and tensor.is_floating_point()):
            return f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}"
        if column in values and values[column].shape != tensor.shape:
            return f"{name} has another length than {column}"
    if examples:
        split = next(iter(examples)).split(".")[1]
        parts = [examples.pop(f"examples.{split}.{part}", None) for part in PARTS]
        if examples or any(part is None for part in parts) or len(set(map(len, parts))) > 1:
            return "its examples are not complete"
        if parts[1].shape != parts[2].shape:
            return "its examples have other tokens planted than written"
    return None


def _auto_precision(device: str) -> str:
    """Return the precision that --dtype auto selects on a device."""
    import torch

    from tinymem.models.precision import auto_precision

    return auto_precision(torch.device(device))


def environment(device: str) -> dict[str, Any]:
    """Return the versions and the machine, as stored in every record. `device`: the device of the run."""
    import torch

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "device": device,
        "processor": _processor(device),
    }


def _processor(device: str) -> str:
    """Return the name of a GPU, or of this machine's CPU."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:  # Linux, where platform.processor() is often empty
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _all_finite(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return results with null in place of numbers that are not finite."""
    return {
        name: None if isinstance(value, float) and not _is_number(value) else value for name, value in results.items()
    }
