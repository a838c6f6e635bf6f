"""`python -m tinymem.records rerun FILE`: run a record again and compare the results."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinymem import cli, scripts
from tinymem.errors import UserError
from tinymem.records.finder import keyed_records_in
from tinymem.records.identity import FINGERPRINTS, record_digest, run_key
from tinymem.records.record import read_record
from tinymem.records.table import versions

FOLDER = "runs/rerun"
REMEDY = "give a record, such as runs/NAME/records/DIGEST.json"
UNMEASURED = ("model_folder", "twin", "epoch_seconds")  # results that are not measurements, or are times


def add_rerun_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--output_dir", metavar="DIR", help=f"where the new run goes (default: {FOLDER}/DIGEST)")
    parser.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    parser.add_argument("--dry_run", action="store_true", help="print the command and exit")


def rerun(arguments: argparse.Namespace) -> None:
    """Print the command of a record, run it and compare the results. Exit with 1 if they are not the same."""
    # a late import: sweeps import this module, and their --help must be fast
    from tinymem.sweeps.moved_models import with_moved_models
    from tinymem.sweeps.record_command import words_of

    path = Path(arguments.folder)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; {REMEDY}")
    record = read_record(path, REMEDY)
    folder = Path(arguments.output_dir or Path(FOLDER) / record_digest(record))
    if folder.resolve() == path.resolve().parent.parent:
        raise UserError(f"--output_dir {folder}: the record itself is there; give another folder")
    record, environment = with_moved_models(record, path), record["environment"]
    words = words_of(record, path)
    words += ["--output_dir", str(folder), "--data_dir", arguments.data_dir, "--device", _device(environment)]
    threads = environment.get("threads")
    if threads:  # sums depend on the number of threads
        os.environ["OMP_NUM_THREADS"] = str(threads)
    start = scripts.words(words[0])
    if arguments.dry_run:
        print((f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(["python", *start, *words[1:]]))
        return
    if _made(folder, record):
        print(
            f"{folder}: has the record of an earlier rerun, which is compared; remove it to run again", file=sys.stderr
        )
    else:
        if scripts.in_checkout():
            start = [str(scripts.ROOT / words[0])]
        cli.run_script([*start, *words[1:]])
    new = _made(folder, record)
    if new is None:
        raise UserError(f"{folder}: the command left no record with the settings of {path}")
    if not report(record, new):
        sys.exit(1)


def _device(environment: Mapping[str, Any]) -> str:
    return str(environment.get("device", "auto")).partition(":")[0]


def _made(folder: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of the same run in a folder, preferably of the same model, else of one with other weights."""
    key, digest = run_key(record), record_digest(record)
    found = [other for other, its_key in keyed_records_in(folder) if its_key == key]
    return next((other for other in found if record_digest(other) == digest), found[0] if found else None)


def report(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Print how the results of a run differ from those of the earlier run. Return whether they are the same."""
    if versions(old) != versions(new):
        print(f"versions: {versions(old)}; now {versions(new)}")
    prints = old.get(FINGERPRINTS, {}), new.get(FINGERPRINTS, {})
    other = [name for name in prints[0] if prints[0][name] != prints[1].get(name)]
    if other:
        print(f"not on the same input: {', '.join(other)} differ{'s' if len(other) == 1 else ''}")
    rows, missing, same = [], [], 0
    for name, before in old["results"].items():
        if name in UNMEASURED:
            continue
        if name not in new["results"]:
            missing.append(name)
        elif (after := new["results"][name]) == before:
            same += 1
        else:
            rows.append(
                {"result": name, "before": _exact(before), "again": _exact(after), "difference": _gap(before, after)}
            )
    if missing:
        print(f"not measured again: {', '.join(missing)}")
    if rows:
        print(cli.table(rows))
        print(f"\n{len(rows)} of {len(rows) + same} results differ")
    elif not other:
        print(f"the same to the digit: {same} results")
    return not rows and not other


def _exact(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _gap(before: Any, after: Any) -> float | None:
    numbers = all(isinstance(value, (int, float)) for value in (before, after))
    return after - before if numbers else None
