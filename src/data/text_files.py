"""Read a user's text: .txt, .md, .jsonl, .parquet, or a folder of them. Every error names the file and the place."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from pathlib import Path

from tinymem.errors import UserError, first_line
from tinymem.folders import found_under
from tinymem.inputs import check_file, read_bytes

PLAIN = (".txt", ".text", ".md")
SUFFIXES = (*PLAIN, ".jsonl", ".parquet")

logger = logging.getLogger(__name__)


def corpus_files(path: Path, flag: str = "--corpus") -> list[Path]:
    """Return the files of a corpus, sorted: the file itself, or all files with a known suffix at any depth of a folder.

    Links are followed; hidden names are skipped.

    Raise UserError, naming `flag`, if there is no file, or if its kind is unknown.
    """
    known = ", ".join(SUFFIXES)
    if path.is_dir():
        found = sorted(file for file in found_under(path) if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise UserError(f"{flag} {path}: no {known} file in this folder")
        return found
    if not path.exists():
        raise UserError(f"{flag} {path}: no such file or folder (or use hub or builtin)")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{flag} {path}: unknown kind of file; it must end in {known}")
    return [path]


def sha256(paths: list[Path]) -> str:
    """Return the SHA-256 of a file, as sha256sum prints it; for several, that of their joined hexadecimal SHA-256s.

    The texts are not joined, because a document ends with its file.
    """
    for path in paths:
        check_file(path)
    each = [_sha256(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


@functools.lru_cache(maxsize=None)
def _sha256(path: Path, size: int, time: int) -> str:
    """Return a file's SHA-256. size and time (of its last change) are cache keys: an unchanged file is read once."""
    total = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return total.hexdigest()


def read_texts(path: Path, column: str) -> list[str]:
    """Return a file's texts: one per plain file, one per row (in `column`) for .jsonl and .parquet.

    Rows with null there are left out, with a warning. Raise UserError, naming the line, for anything other than text.
    """
    if path.suffix.lower() == ".jsonl":
        return _read_jsonl(path, column)
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, column)
    return [read_text(path)]


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file with any line ends. Raise UserError naming the first invalid byte."""
    try:
        content = read_bytes(path)
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise UserError(f"{path}: not UTF-8 at byte offset {error.start} (0x{byte:02x}); convert the file") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _read_jsonl(path: Path, column: str) -> list[str]:
    texts: list[str | None] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=lambda pairs: _object(pairs, column, path, number))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from None
        except RecursionError:
            raise UserError(f"{path}: line {number} is nested too deeply") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        if column not in row:
            raise UserError(f"--text_column {column}: {path} line {number} has only {', '.join(row) or 'nothing'}")
        if row[column] is None:
            texts.append(None)
            continue
        if not isinstance(row[column], str):
            raise UserError(
                f"--text_column {column}: {path} line {number} holds no text there, but {_kind(row[column])}"
            )
        try:
            row[column].encode()
        except UnicodeEncodeError:  # JSON can contain half of a pair
            raise UserError(f"{path}: line {number} holds a lone surrogate, which is no character") from None
        texts.append(row[column])
    return _without_null(path, texts)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", bool: "true or false"}
    return kinds.get(type(value), "a number")


def _object(pairs: list[tuple], column: str, path: Path, number: int) -> dict:
    """Return a JSON object. Raise UserError if it has the column twice: Python would silently keep the last value."""
    if sum(name == column for name, _ in pairs) > 1:
        raise UserError(f"--text_column {column}: {path} line {number} has several values of this name")
    return dict(pairs)


def _read_parquet(path: Path, column: str) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    check_file(path)
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if column not in names:
            raise UserError(f"--text_column {column}: {path} has only {', '.join(names)}")
        if names.count(column) > 1:
            raise UserError(
                f"--text_column {column}: {path} has {names.count(column)} columns of this name; rename one"
            )
        stored = file.read(columns=[column]).column(column)
        kind = stored.type.value_type if pyarrow.types.is_dictionary(stored.type) else stored.type
        if not any(test(kind) for test in _text_types()):
            raise UserError(f"--text_column {column}: {path} holds {stored.type} there, not text")
        rows = stored.cast(pyarrow.large_string()).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None
    return _without_null(path, rows)


def _without_null(path: Path, rows: list[str | None]) -> list[str]:
    texts = [text for text in rows if text is not None]
    if len(texts) < len(rows):
        left_out = len(rows) - len(texts)
        logger.warning("%s: %d of %d rows hold no text (null) and are left out", path, left_out, len(rows))
    return texts


def _text_types() -> tuple:
    """Return the text types of Arrow; earlier versions lack string_view."""
    from pyarrow import types

    return types.is_string, types.is_large_string, getattr(types, "is_string_view", types.is_string)
