"""Fail if the library has become slower, relative to the recipe, than in the committed results.

    python benchmarks/check.py               measures again, 15 minutes
    python benchmarks/check.py FRESH.json    compares a results file of `run.py --output FRESH.json`

Ratios are compared, not seconds, so the machine matters little. Too noisy for continuous integration.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
import json
import sys
from typing import Any

import report

from tinymem import files
from tinymem.errors import UserError
from tinymem.models.precision import auto_precision

TOLERANCE = 0.25


def fallen(fresh: dict[str, Any], committed: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per ratio: name, committed, fresh, change in percent, and whether it fell by more than TOLERANCE.

    Rows measured in different precisions, because only one device has instructions for bfloat16, are not compared:
    fresh and percent are None. Raise UserError if the results are not comparable, or a row is missing.
    """
    check_comparable(fresh["settings"], fresh["environment"]["device"], committed)
    before, now = ({row["name"]: row for row in results["rows"] if "ratio" in row} for results in (committed, fresh))
    if any("dtype" not in row for row in (*before.values(), *now.values())):
        raise UserError("not comparable: measured by an older run.py, which did not write down precisions")
    dtypes = {"float32", fresh["environment"]["auto_dtype"]}
    rows = []
    for name, row in before.items():
        comparison = {"name": name, "committed": row["ratio"], "fresh": None, "percent": None, "fell": False}
        if name not in now and row["dtype"] in dtypes:
            raise UserError(f"the fresh results have no row {name}; measure without --only")
        if name in now and now[name]["dtype"] == row["dtype"]:
            change = now[name]["ratio"] / row["ratio"] - 1
            comparison |= dict(fresh=now[name]["ratio"], percent=round(100 * change, 1), fell=change < -TOLERANCE)
        rows.append(comparison)
    return rows


def check_comparable(settings: dict[str, Any], device: str, committed: dict[str, Any]) -> None:
    """Raise UserError unless these settings have the sizes and kind of device of the committed results."""
    kinds = [name.partition(":")[0] for name in (device, committed["environment"]["device"])]
    if kinds[0] != kinds[1]:
        raise UserError(f"not comparable: measured on {kinds[0]}, the committed results on {kinds[1]}")
    for name, value in committed["settings"].items():
        other = settings.get(name)
        if other != value:
            raise UserError(f"not comparable: {name} is {other} in the fresh results, {value} in the committed ones")


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("fresh", nargs="?", help="results to check (default: measure now)")
    parser.add_argument("--committed", help="results to check against (default: those of a similar machine, with "
                        "instructions for bfloat16 or without)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="where to measure: auto, cpu, cuda ... (default: auto)")
    arguments = parser.parse_args()
    fresh = read(arguments.fresh) if arguments.fresh else None
    dtype = fresh["environment"].get("auto_dtype") if fresh else auto_precision(cli.resolve_device(arguments.device))
    committed = read(arguments.committed or report.committed(str(dtype)))
    fresh = fresh or measure_now(arguments.device, committed)
    rows = fallen(fresh, committed)
    print(cli.table(rows))
    if any(row["fresh"] is None for row in rows):
        print("\nnot compared where no fresh figure stands: bfloat16 on one of the two devices only")
    slower = [row["name"] for row in rows if row["fell"]]
    if slower:
        print(f"\nfell by more than {TOLERANCE:.0%}: {', '.join(slower)}", file=sys.stderr)
        sys.exit(1)


def read(path) -> dict[str, Any]:
    """Return a results file's content. Raise UserError if it is missing or damaged."""
    return files.read_json(path, required=("settings", "environment", "rows"))


def measure_now(device_name: str, committed: dict[str, Any]) -> dict[str, Any]:
    """Return fresh results at the committed sizes. Raise UserError, before any work, if they are not comparable."""
    import run

    from tinymem import allocator

    device, quick = cli.resolve_device(device_name), committed["settings"]["quick"]
    sizes = run.sizes_on(device, quick)
    check_comparable(as_read(run.settings_of(sizes, quick)), str(device), committed)
    allocator.keep_freed_memory()
    return as_read(run.measure(device, sizes, quick))


def as_read(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content as read from a file: tuples become lists."""
    return json.loads(json.dumps(content))


if __name__ == "__main__":
    cli.run(main)
