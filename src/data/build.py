"""From settings to a dataset, through a cache on disk.

Number sequences are cached whole. Text is cached as tokens, in memory-mapped files: planting artifacts copies only the
planted rows.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import torch

from tinymem import files
from tinymem.data.chunks import chunk_paths
from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.data.number_dataset import build_number_dataset
from tinymem.data.settings import DataSettings
from tinymem.data.text_dataset import build_text_dataset
from tinymem.errors import reading
from tinymem.inputs import check_file, check_value, parse_json

FORMAT = 3  # increase when the same settings produce different data; older caches are then ignored
DEFAULT_CACHE = "data"
PLANTED = ("artifacts", "test_artifacts", "never_planted")  # the dataset's fields of planted sequences


def build_dataset(settings: DataSettings) -> MemorizationDataset:
    """Build the dataset in memory. Raise UserError if the settings ask for more data than there is."""
    return build_text_dataset(settings) if settings.is_text else build_number_dataset(settings)


def load_dataset(settings: DataSettings, cache_dir: str | Path | None = DEFAULT_CACHE) -> MemorizationDataset:
    """Return the dataset from the cache, or build and cache it. `None` builds without a cache.

    Raise UserError for settings that cannot be met and for a cache file that cannot be read or written.
    """
    if cache_dir is None:
        return build_dataset(settings)
    if settings.is_text:
        return build_text_dataset(settings, cache_dir)
    path = cache_path(settings, cache_dir)
    if path.exists():
        return _read(path)
    dataset = build_dataset(settings)
    _write(dataset, path)
    return dataset


def cache_path(settings: DataSettings, cache_dir: str | Path = DEFAULT_CACHE) -> Path:
    """Return the cache file of a dataset (text: of its training tokens): a readable name and a hash of the settings."""
    if settings.is_text:
        return chunk_paths(settings, cache_dir)[0]
    key = files.digest({"format": FORMAT, **settings.applicable()})
    return Path(cache_dir) / f"{settings.data_name}_{settings.artifact}_seed{settings.seed}_{key}.safetensors"


def _write(dataset: MemorizationDataset, path: Path) -> None:
    """Write safetensors: tensors under dotted names ("artifacts.clean", "tests.two"), the rest as JSON metadata."""
    from safetensors.torch import save_file

    tensors, plain = {}, {}
    for field in fields(dataset):
        value = getattr(dataset, field.name)
        if isinstance(value, torch.Tensor):
            tensors[field.name] = value
        elif isinstance(value, Artifacts):
            tensors |= {f"{field.name}.{part.name}": getattr(value, part.name) for part in fields(Artifacts)}
        elif isinstance(value, dict):
            tensors |= {f"{field.name}.{name}": tensor for name, tensor in value.items()}
            plain[field.name] = list(value)  # safetensors does not keep the order of names
        else:
            plain[field.name] = value
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}  # no shared storage
    files.write_file(path, lambda temporary: save_file(tensors, temporary, metadata={"plain": json.dumps(plain)}))


def _read(path: Path) -> MemorizationDataset:
    from safetensors import safe_open

    check_file(path, share=float("inf"))
    with reading(path, "this cached dataset is damaged ({why}); delete it and run again"):
        with safe_open(path, framework="pt") as file:
            plain = parse_json(file.metadata()["plain"], path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        values = dict(plain)
        for name in PLANTED:
            values[name] = Artifacts(**{part.name: tensors.pop(f"{name}.{part.name}") for part in fields(Artifacts)})
        for name in ("tests", "tasks"):
            values[name] = {key: tensors.pop(f"{name}.{key}") for key in plain[name]}
        dataset = MemorizationDataset(**values, **tensors)
        _check(dataset, path)
    return dataset


def _check(dataset: MemorizationDataset, path: Path) -> None:
    """Raise UserError or ValueError for values of the wrong type and for ids out of range."""
    for name, kind in get_type_hints(MemorizationDataset).items():
        if kind in (str, int, bool, int | None):
            check_value(getattr(dataset, name), kind, name, path)
    rows, width = dataset.sequences.shape
    planted = [getattr(dataset, name) for name in PLANTED]
    tables = [dataset.sequences, *dataset.tests.values(), *(t for a in planted for t in (a.planted, a.clean))]
    ids = {"order": dataset.order, "artifact_ids": dataset.artifact_ids, **dataset.tasks}
    _check_range("tokens", tables, dataset.vocabulary_size)
    _check_range("example ids", list(ids.values()), rows)
    _check_range("prompt ends", [a.prompt_end for a in planted], width + 1)
    _check_range("groups", [a.group for a in planted], 10)
    same_length = len(dataset.artifact_ids) == len(dataset.artifacts)
    same_length &= all(len(getattr(a, field.name)) == len(a) for a in planted for field in fields(Artifacts))
    if any(table.shape[1:] != (width,) for table in tables) or not same_length:
        raise ValueError("its tensors have shapes that do not belong together")


def _check_range(what: str, tensors: list[torch.Tensor], size: int) -> None:
    for tensor in tensors:
        if tensor.is_floating_point() or (tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < size):
            raise ValueError(f"{what} outside 0 to {size - 1}")
