"""Convert records of format 1 (a flat dict of settings) to format 2.

This module fixes the layout of format 1, so later changes to settings do not affect it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.errors import UserError
from tinymem.records.identity import (
    AS_PUBLISHED,
    FINETUNE,
    NEVER_PLANTED,
    PLANTED_MODEL,
    TRAIN,
    UNEDITED,
    UNLEARN,
    identity_of,
    record_digest,
)
from tinymem.records.record import OUTCOME, is_format_1, read_record
from tinymem.records.table import check_folder, find_records

Values = dict[str, Any]

DATA: tuple[str, ...] = ("data_name", "artifact", "num_7", "num_2", "num_3", "num_4", "num_5", "num_test")
DATA += ("num_noise", "duplicate", "length", "max_ctx", "prompt_tokens", "continuation_tokens", "seed", "corpus")
DATA += ("corpus_sha256", "text_column", "num_chunks", "train_tokenizer", "vocab_size", "memorized_data", "random_data")
DATA += ("tokenizer", "tokenizer_sha256")
DATA += ("num_retain", "plant", "plant_sequences", "plant_tokens", "plant_seed")
MODEL = {"model_name": "name", "step": "step", "n_layers": "n_layers", "n_heads": "n_heads", "n_embd": "n_embd"}
REGULARIZERS: tuple[str, ...] = ("spectral_reg", "lam", "truncate_loss", "dropc", "truncation_window")
REGULARIZERS += ("example_tied_dropout", "p_fixed", "p_mem", "l1_reg")
TRAINING = ("epochs", "checkpoint_every", "batch_size", "lr", "lr_decay", "l2_reg", "dtype", "train_microbatch")
PLANTING: tuple[str, ...] = (PLANTED_MODEL, "plant_percent", "plant_lr", "plant_batch_size", "plant_retain_share")
PLANTING += (
    "plant_epochs",
    "plant_dtype",
)
FORGET = ("unlearn_set_name", "holdout_fraction", "max_retain", "unlearn_seed")
FINGERPRINTS = {"weights": "weights", "task": "forget_set"}
WITH_DTYPE = ("subnet", "balanced_subnet")  # the methods that had their own precision setting


def upgrade(folder: str | Path, report: Callable[[str], None] = lambda line: None) -> tuple[int, int, int]:
    """Convert all records of format 1 under a folder in place. Each new file is written before the old one is removed.

    If interrupted, run it again. report: receives one line per file that is damaged, unknown, or a second record of a
    run with different results; such files stay. Return how many were converted, how many already had format 2, and how
    many stay. Raise UserError if there is no such folder.
    """
    check_folder(folder)
    old, trained, current, stay = {}, set(), 0, 0
    for path in find_records(folder):
        try:
            content = files.read_json(path)
            if is_format_1(content):
                old[path] = content, converted(content)
                record = old[path][1]
            else:
                record, current = read_record(path), current + 1
        except UserError as error:
            report(_named(path, error))
            stay += 1
            continue
        if record["kind"] == TRAIN:
            trained.add(record_digest(record))
    done = 0
    for path, (content, record) in old.items():
        record = {**identity_of({**record, "parent": _parent(content, record, trained)}), **_outcome(content)}
        target = path.with_name(f"{record_digest(record)}.json")
        if not target.exists():
            files.write_json(target, record)
        elif read_record(target)["results"] != record["results"]:  # else a duplicate, or an interrupted upgrade
            report(f"{path}: the same run as {target.name} with other results; delete one of them")
            stay += 1
            continue
        path.unlink()
        done += 1
    return done, current, stay


def _named(path: Path, error: UserError) -> str:
    text = str(error)
    return text if text.startswith(str(path)) else f"{path}: {text}"


def _outcome(content: Mapping[str, Values]) -> dict[str, Values]:
    return {part: content[part] for part in OUTCOME}


def converted(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind and sections of a record of format 1. Raise UserError for a damaged or unknown record."""
    for part in ("settings", *OUTCOME):
        if not isinstance(content.get(part), dict):
            raise UserError(f"this file is damaged ({part} is no object); delete it and run again")
    left = dict(content["settings"])
    run = left.pop("run", None)
    sort = {"train": _train, "finetune": _finetune, "unlearn": _unlearn, "as_published": _as_published}.get(run)
    if sort is None:
        raise UserError(f"unknown kind of run {run!r}; nothing that tinymem wrote")
    try:
        return sort(left)
    except KeyError as error:
        raise UserError(f"this file is damaged (no {error.args[0]} in settings); delete it and run again") from None


def _train(left: Values) -> dict[str, Any]:
    record = {"kind": TRAIN, "data": _take(left, DATA), "model": _take(left, MODEL)}
    record["training"] = _take(left, REGULARIZERS) | _take(left, TRAINING)
    return _nothing_left(left, record)


def _finetune(left: Values) -> dict[str, Any]:
    method = {"name": left.pop("ft_data"), "ft_epochs": left.pop("ft_epochs")}
    prints = _take(left, FINGERPRINTS)
    record = {"kind": FINETUNE, **_of_checkpoint(left), "method": method, "fingerprints": prints}
    return _nothing_left(left, record)


def _as_published(left: Values) -> dict[str, Any]:
    slip = left.pop("slip")
    own = _take(left, ("ratio", "sequences"))
    method = {"name": f"{slip}_as_published", **own}
    return _nothing_left(left, {"kind": AS_PUBLISHED, **_of_checkpoint(left), "method": method})


def _unlearn(left: Values) -> dict[str, Any]:
    """Return the sections of an unlearning run. Settings that belong to no other section are the method's."""
    name = left.pop("method")
    kind = name if name in (UNEDITED, NEVER_PLANTED) else UNLEARN
    forget, prints = _take(left, FORGET), _take(left, FINGERPRINTS)
    training = {plain: left.pop(long) for plain in TRAINING if (long := f"training_{plain}") in left}
    if "model_name" in left:  # production runs stored the model's dtype, which determines the method's
        model = _take(left, {**MODEL, "dtype": "dtype"})
        if name in WITH_DTYPE:
            left["dtype"] = "bfloat16" if model.get("dtype") == "bfloat16" else "float32"
        before = {"data": _take(left, DATA), "model": model, "training": _take(left, PLANTING)}
    else:
        before = _of_checkpoint(left, training)
    if kind != UNLEARN:
        return _nothing_left(left, {"kind": kind, **before, "forget": forget, "fingerprints": prints})
    return {"kind": kind, **before, "forget": forget, "method": {"name": name, **left}, "fingerprints": prints}


def _of_checkpoint(left: Values, training: Values | None = None) -> dict[str, Values]:
    """Return the sections of a checkpoint, without the settings that a longer training or a moved text may change."""
    regularizers = _take(left, REGULARIZERS)
    training = regularizers | (_take(left, TRAINING) if training is None else training)
    data, model = _take(left, DATA), _take(left, MODEL)
    training.pop("checkpoint_every", None)
    if not training.get("lr_decay"):
        training.pop("epochs", None)
    for name in ("corpus", "tokenizer"):
        if data.get(f"{name}_sha256"):
            data.pop(name, None)
    return {"data": data, "model": model, "training": training | _take(left, ("epoch",))}


def _take(left: Values, names: Mapping[str, str] | tuple[str, ...]) -> Values:
    """Remove these settings from the remaining ones and return them, renamed as `names` says."""
    new = names if isinstance(names, Mapping) else dict(zip(names, names))
    return {new[name]: left.pop(name) for name in list(left) if name in new}


def _nothing_left(left: Values, record: dict[str, Any]) -> dict[str, Any]:
    if left:
        raise UserError(f"unknown settings {', '.join(left)}; nothing that tinymem wrote")
    return record


def _parent(content: Mapping[str, Any], record: Mapping[str, Any], trained: set[str]) -> str | None:
    """Return the digest of the record of the model that a run started from.

    For an unlearning run, this is the unedited model with the same sections. For a fine-tuning, it is the training with
    the settings that the record names, if that training's record is here.
    """
    if record["kind"] == UNLEARN:
        return record_digest({**record, "kind": UNEDITED, "method": {}})
    if record["kind"] == FINETUNE:
        names = ("weights", "epoch", "ft_data", "ft_epochs", "run")
        training = {key: value for key, value in content["settings"].items() if key not in names}
        digest = record_digest(_train(training))
        return digest if digest in trained else None
    return None
