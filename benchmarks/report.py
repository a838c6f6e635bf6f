"""The committed results, and results as a table in the terminal and as README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem import cli, files
from tinymem.records.table import markdown

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"  # from a machine with instructions for bfloat16; README.md is made from it
FLOAT32 = HERE / "results_float32.json"  # from a machine without them: fewer rows, other ratios
Results = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def committed(auto_dtype: str) -> Path:
    """Return the file of committed results from machines where `--dtype auto` is this type."""
    return RESULTS if auto_dtype == "bfloat16" else FLOAT32


COLUMNS = ("name", "recipe_seconds", "stock_seconds", "ours_seconds", "ratio", "ratio_same_allocator", "share_of_limit")
VARIANTS = {
    "recipe": "the recipe: eager attention, whole batch, float32",
    "recipe_bfloat16": "the same in bfloat16 autocast",
    "stock": "transformers' `sdpa` attention, fused AdamW, tensors",
    "attention": "the recipe with our attention",
    "ours": "ours: with microbatches, tensors and fused AdamW too",
}
SEARCHES = {
    "recipe": "generation without a cache, window after window",
    "stock": "generation with a cache",
    "ours": "find_memorized.py --stride 1",
    "screened": "find_memorized.py --stride 1 --screen 0.5",
}
HEAD = """# Benchmarks

Written by `python benchmarks/run.py` from [results.json](results.json); do not edit.

```bash
make bench                                # all of this, under 15 minutes on two CPU cores
python benchmarks/run.py --quick          # small sizes, under 2 minutes, noisy
python benchmarks/run.py --device cuda    # on a GPU
python benchmarks/check.py                # measures again; fails if a ratio fell by more than 25 %
python benchmarks/growth.py               # cost and peak memory against layers, width, sequences, ratio
python benchmarks/regularizer_cost.py     # what each regularizer adds to a training step
```

The *recipe* is the study's, rewritten in [recipe/](recipe): stock GPT-2 with eager attention in float32, a DataLoader
over Python lists, generation without a cache to measure memorization, loops over neurons and positions, sequential
Fisher updates, full sorts. *Stock* is the best that transformers offers: fused (`sdpa`) attention, fused AdamW,
generation with a cache, in the precision of ours (Subnet, BalancedSubnet: in float32). All take turns in one run. The
tables show medians, in seconds for one unit of work. The recipe runs as it comes in its own process; *same allocator*
means in a process that keeps freed memory, as the library's scripts do (`src/allocator.py`). bfloat16 is measured if
the device has instructions for it. tests/benchmarks checks that the recipe and the library compute the same.
"""


def terminal_table(rows: Rows) -> str:
    """Return rows as aligned text."""
    return cli.table(rows, COLUMNS)


def write(results: Results, path: Path) -> Path:
    """Write README.md."""
    return files.write_file(path, lambda temporary: temporary.write_text(render(results), encoding="utf-8"))


def render(results: Results) -> str:
    """Return the whole text of README.md."""
    compared = [row for row in results["rows"] if "recipe_seconds" in row]
    environment = results["environment"]
    machine = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "threads", "device"))
    parts = [HEAD, f"Measured with {machine}.\n", _comparison(compared), _shares(compared), _ingredients(compared)]
    parts += [_batch_sizes(compared), _searches(compared), _others(results), _growth()]
    return "\n".join(part for part in parts if part)


def _comparison(rows: Rows) -> str:
    lines = [
        [
            f"`{row['name']}`: {row['work']}",
            *(_number(row[name]) for name in ("recipe_seconds", "stock_seconds", "ours_seconds")),
            _goal(row["ratio"], row["goal"], "{:.1f}x"),
            _goal(row["ratio_same_allocator"], row["goal_same_allocator"], "{:.1f}x"),
            _goal(row["share_of_limit"], row["goal_share"], "{:.0%}"),
        ]
        for row in rows
    ]
    header = ["", "recipe s", "stock s", "ours s", "recipe / ours", "same allocator", "share of the limit"]
    limit = (
        "\nThe limit is the time of the unavoidable work at the rate of a large square matrix product, measured in the "
        "same rounds in the precision of ours. Attention is counted over the whole context, as is usual; ours skips "
        "the third of it that comes after the last query of a block. A missed goal follows its figure in parentheses.\n"
    )
    return "## Against the recipe\n\n" + _table(header, lines) + limit


def _shares(rows: Rows) -> str:
    """Return a sentence on the scaled figures."""
    texts = [
        f"`{row['name']}` {', '.join(f'{variant} {share:.3%}' for variant, share in row['shares_measured'].items())}"
        for row in rows
        if row["shares_measured"]
    ]
    return "Only a share of long work was done, and scaled linearly: " + "; ".join(texts) + ".\n" if texts else ""


def _ingredients(rows: Rows) -> str:
    """Return tokens per second of every variant of the training cases, as it comes and with the same allocator."""
    lines = []
    for row in rows:
        speeds = row.get("tokens_per_second")
        if speeds is None or not row["name"].startswith("training_") or row["name"].startswith("training_batch"):
            continue
        for variant, text in VARIANTS.items():
            if variant in speeds:
                came = speeds.get(f"{variant} as it comes")
                lines.append([f"`{row['name']}`", text, f"{came:,}" if came else "", f"{speeds[variant]:,}"])
    header = ["tokens a second", "", "as it comes", "same allocator"]
    return "## What each ingredient brings\n\n" + _table(header, lines) if lines else ""


def _batch_sizes(rows: Rows) -> str:
    """Return a section on whether speed stays the same as batches grow."""
    rows = [row for row in rows if row["name"].startswith("training_batch")]
    if not rows:
        return ""
    lines, speeds = [], [row["tokens_per_second"] for row in rows]
    for row, speed in zip(rows, speeds):
        came = speed.get("recipe as it comes", speed["recipe"])
        batch = row["name"].rpartition("_")[2]
        lines.append([batch, f"{came:,}", f"{speed['stock']:,}", f"{speed['ours']:,}"])
    ours = [speed["ours"] for speed in speeds]
    came = [speed.get("recipe as it comes", speed["recipe"]) for speed in speeds]
    over = max(ours) / min(ours), max(came) / min(came)
    text = f"\nFastest over slowest: ours {over[0]:.2f} (goal: 1.10), the recipe {over[1]:.2f}.\n"
    header = ["sequences a step, 2 layers, float32: tokens a second", "recipe", "stock", "ours"]
    return "## Batch sizes\n\n" + _table(header, lines) + text


def _searches(rows: Rows) -> str:
    """Return tokens of text per second of a search that tests every offset."""
    row = next((row for row in rows if row["name"] == "finding"), None)
    if row is None:
        return ""
    speeds = row["tokens_per_second"]
    lines = [[text, f"{speeds[variant]:,}"] for variant, text in SEARCHES.items() if variant in speeds]
    text = f"\n`finding`, {row['work']}: of text in which nothing is memorized, the usual case.\n"
    return "## Searching a text\n\n" + _table(["tokens of text a second", "same allocator"], lines) + text


def _others(results: Results) -> str:
    """Return the sections on start-up, time outside the steps, and the profile of a step."""
    parts = []
    started = [row for row in results["rows"] if "goal_seconds" in row]
    if started:
        lines = [[row["work"], _goal(-row["ours_seconds"], -row["goal_seconds"], "{:.3f}", sign=-1)] for row in started]
        parts += ["## Start-up\n", _table(["", "seconds"], lines)]
    outside = results.get("outside_the_steps_percent")
    if outside:
        lines = [[name, f"{value:.2f}"] for name, value in outside.items()]
        lines.append(["together", _goal(-sum(outside.values()), -5.0, "{:.2f}", sign=-1)])
        parts += [
            "## Outside the steps of a training run with default settings\n",
            _table(["", "% of its time"], lines),
        ]
    profiles = results.get("profile_percent")
    if profiles:
        kinds = list(next(iter(profiles.values())))
        lines = [[kind, *(f"{shares[kind]:.1f}" for shares in profiles.values())] for kind in kinds]
        parts += ["## Where the time of a training step goes, 2 layers\n", _table(["% of its time", *profiles], lines)]
    return "\n".join(parts)


def _growth() -> str:
    return "## Growth\n\n![Cost and peak memory](growth.png)\n" if (HERE / "growth.png").exists() else ""


def _table(header: list[str], lines: list[list[str]]) -> str:
    return markdown(header, lines, numbers=True) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _goal(value: float | None, goal: float | None, form: str, sign: int = 1) -> str:
    """Return the value, and the goal in parentheses if it is missed. sign -1: both are negated, less is better."""
    if value is None:
        return ""
    missed = goal is not None and value < goal
    return form.format(sign * value) + (f" (goal: {form.format(sign * goal)})" if missed else "")
