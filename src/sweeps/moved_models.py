"""The folders of other tools' models that a record names, found again after they have moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinymem.errors import OutOfMemory, UserError
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.production import open_causal_lm
from tinymem.models.tinymem import load_model
from tinymem.records.identity import FINGERPRINTS, PLANTED_MODEL, TWIN_MODEL, Record


def with_moved_models(record: Record, path: Path) -> dict[str, Any]:
    """Return a record with the present folders of its model and its twin, where the recorded ones are gone.

    They are looked for below the current folder and below the folders above the record, under the same name. A model
    must have the recorded weights; those of a twin are not recorded. path: the record's file. Raise UserError for a
    folder that is not found or holds other weights.
    """
    model = dict(record.get("model", {}))
    for name, flag in (("name", "model"), (TWIN_MODEL, "--twin_model")):
        given = model.get(name)
        if isinstance(given, str) and Path(given).is_absolute() and not Path(given).exists():
            model[name] = str(_found_again(given, name == "name", flag, record, path).resolve())
    return {**record, "model": model} if "model" in record else dict(record)


def _found_again(given: str, is_model: bool, flag: str, record: Record, path: Path) -> Path:
    """Return the present folder of a model or twin. Raise UserError if there is none."""
    weights = record.get(FINGERPRINTS, {}).get("weights")
    is_known = is_model and PLANTED_MODEL not in record.get("training", {})  # otherwise these are another model's
    changed = None
    for folder in _places(given, path):
        if not is_known or weights in (None, _weights(folder, record["model"])):
            return folder
        changed = changed or folder
    if changed:
        raise UserError(f"{path}: its model lay in {given}; {changed} holds other weights; restore the old ones")
    raise UserError(
        f"{path}: its {flag} {given} is gone, and not below this folder or one above the record; put it there again"
    )


def _places(given: str, path: Path) -> Iterator[Path]:
    """Yield folders of models with the name of a folder that is gone; the longer the part of its path, the earlier."""
    parts = Path(given).parts[1:]
    for above in (Path.cwd(), *path.absolute().parents):
        for start in range(len(parts)):
            folder = above.joinpath(*parts[start:])
            if any(folder.glob("config.json")) or any(folder.glob("step*/config.json")):
                yield folder


def _weights(folder: Path, model: Record) -> str | None:
    """Return the fingerprint of a folder's weights, opened as its record says; "" if it cannot be opened."""
    try:
        if "dtype" not in model:
            return weights_fingerprint(load_model(folder))
        return weights_fingerprint(open_causal_lm(folder, model.get("step"), dtype=model["dtype"])[0])
    except OutOfMemory:
        raise
    except UserError:
        return ""
