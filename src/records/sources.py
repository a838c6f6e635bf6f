"""The paths of the user's files, kept in a record's environment so that the run can be repeated.

Texts, token sets and files of code are entries {"flag", "path", "sha256"}, with "column" if text is not in the usual
one. They are not part of a run's identity, which depends on the files' content: one file in two places is one
experiment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem.data.text_files import corpus_files, sha256
from tinymem.errors import UserError

KEY = "sources"  # in `environment`
METRIC_FLAGS = ("--metrics", "--attack_metrics")
Source = dict[str, str]


def source_of(flag: str, path: str, column: str | None = None) -> Source:
    """Return the entry of a file, or of a folder of texts. column: the column of text in rows, unless `text`."""
    return {"flag": flag, "path": path, "sha256": _digest(flag, Path(path)), **({"column": column} if column else {})}


def sources(record: Mapping[str, Any], flag: str) -> list[Source]:
    """Return a record's entries for the files of a flag. Old records have none."""
    found = record.get("environment", {}).get(KEY, ())
    known = [entry for entry in found if isinstance(entry, dict) and {"flag", "path", "sha256"} <= entry.keys()]
    return [entry for entry in known if entry["flag"] == flag]


def has_changed(record: Mapping[str, Any], now: Iterable[Mapping[str, str]], flags: Sequence[str]) -> bool:
    """Return whether a file of these flags has changed since a record was made. now: the current entries."""
    before = {entry["path"]: entry["sha256"] for flag in flags for entry in sources(record, flag)}
    return any(before.get(entry["path"], entry["sha256"]) != entry["sha256"] for entry in now)


def found_again(source: Source, record_file: Path) -> Path:
    """Return the current path of a source: as given, relative to here or to a folder above the record.

    Raise UserError, naming the record and the file, if it is missing or has changed.
    """
    flag, changed = source["flag"], None
    for path in _places(source["path"], record_file):
        if path.exists():
            if (digest := _digest(flag, path)) == source["sha256"]:
                return path
            changed = changed or (path, digest)
    if changed:
        path, digest = changed
        raise UserError(
            f"{record_file}: {flag} {path} has changed since (SHA-256 {digest[:16]}..., not "
            f"{source['sha256'][:16]}...); restore the old one"
        )
    raise UserError(f"{record_file}: {flag} {source['path']} is missing; put it there again, or run from where it lies")


def _places(given: str, record_file: Path) -> Iterator[Path]:
    yield Path(given)
    if not Path(given).is_absolute():
        yield from (above / given for above in record_file.absolute().parents)


def _digest(flag: str, path: Path) -> str:
    return sha256(corpus_files(path, flag) if path.is_dir() else [path])
