"""Files that are whole or not there: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinymem.errors import UserError


def digest(settings: dict[str, Any]) -> str:
    """16 hexadecimal digits that name these settings; independent of the order of the keys."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def writable_folder(path: str | Path) -> Path:
    """Makes the folder, parents included. UserError when it cannot be made or written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder ({error.strerror}); choose another") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: this folder is not writable; choose another or change its permissions")
    return folder


def write_file(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Calls `write(temporary path)`, flushes to disk and renames: readers see the old file or the whole new one.

    Raises UserError when the disk is full or the folder is not writable; nothing half-written stays behind.
    """
    path = Path(path)
    writable_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_folder(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Like write_file for a folder: `write(temporary folder)` fills it, a rename publishes it."""
    path = Path(path)
    writable_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write(temporary)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Writes JSON atomically, indented. NaN and infinity are refused: they are not JSON (write None)."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: str | Path) -> Any:
    """Reads JSON. UserError when the file is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and run again") from None
