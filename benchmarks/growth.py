"""Measure how cost and peak memory grow with layers, width, sequences in a step, forget set, and ratio.

    python benchmarks/growth.py            minutes on two CPU cores; writes growth.json, growth.png and growth.pdf here
    python benchmarks/growth.py --quick    seconds, small sizes; writes only to --output

Peak memory is that of the process, minus what it held before. Dotted lines are proportional to the work.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
from case import CONTEXT, SPECIALS, VOCABULARY
from cases_training import random_tokens
from cases_unlearning import new_task

from tinymem import allocator, files, plots
from tinymem.localize.weight import balanced_subnet, durable, greedy
from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.plots.base import plain_numbers
from tinymem.records.cost import measured
from tinymem.records.record import environment
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.train import training_step

Row = dict[str, Any]


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="few small points, one repeat")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--output", help="path of the files without suffix (default: benchmarks/growth; --quick: none)")
    arguments = parser.parse_args()
    device = cli.resolve_device(arguments.device)
    output = arguments.output or (None if arguments.quick else Path(__file__).with_suffix(""))
    allocator.keep_freed_memory()
    rows = measure(device, arguments.quick)
    print(cli.table(rows))
    if output:
        versions = environment(str(device))
        print(f"\nwritten: {files.write_json(f'{output}.json', {'environment': versions, 'rows': rows})}")
        print(*(f"written: {path}" for path in draw(rows, output)), sep="\n")


def measure(device: torch.device, quick: bool) -> list[Row]:
    """Return a row per point: axis, its value, the work, seconds, peak memory in GB, and how the work grows."""
    points = list(_points(device, quick))
    rows = []
    with cli.Display("growth", len(points), "point") as display:
        for axis, value, work, growth, make in points:
            run = make()
            run()
            took, peaks = [], []
            for _ in range(1 if quick else 3):
                took.append(timing.seconds(run, device))  # before `measured`, which returns freed memory
                before = _resident(device)
                with measured(device) as cost:
                    run()
                peaks.append(max(cost.peak_memory_gb - before, 0.0))
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "work": work,
                    "seconds": round(statistics.median(took), 4),
                    "peak_memory_gb": round(statistics.median(peaks), 4),
                    "growth": growth,
                }
            )
            display.advance()
    return rows


def _points(device: torch.device, quick: bool) -> Iterable[tuple[str, float, str, float, Callable]]:
    """Yield (axis, value, work, how the work grows, a function that makes the function to measure)."""
    rows, step = (8, "a training step of 8 sequences") if quick else (64, "a training step of 64 sequences")
    for layers in (1, 2) if quick else (1, 2, 4, 8, 16):
        yield "layers", layers, step, layers, partial(_training, device, rows, layers=layers)
    for width in (32, 64) if quick else (64, 128, 256, 512):
        work = 24 * width**2 + 4 * CONTEXT * width
        yield "width", width, f"{step}, 2 layers", work, partial(_training, device, rows, width=width)
    for count in (4, 8) if quick else (32, 64, 128, 256, 512, 1024):
        yield "sequences", count, "a training step, 2 layers", count, partial(_training, device, count)
    for count in (8, 16) if quick else (64, 128, 256, 512, 1024):
        yield "forget set", count, "Durable, 2 layers", count, partial(_durable, device, count)
    for ratio in (1e-5, 2e-5) if quick else (1e-5, 3e-5, 1e-4):
        yield "ratio", ratio, "Greedy, 2 layers", ratio, partial(_greedy, device, ratio)
    for ratio in (0.01, 0.1) if quick else (1e-3, 0.01, 0.1, 0.3):
        yield "ratio", ratio, "BalancedSubnet, 4 steps, 2 layers", 1, partial(_balanced_subnet, device, ratio)


def _model(device: torch.device, layers: int = 2, width: int = 128):
    settings = ModelSettings(n_layers=layers, n_embd=width)
    return new_model(settings, VOCABULARY, CONTEXT, seed=0, **SPECIALS).to(device)


def _training(device: torch.device, rows: int, **shape: int) -> Callable[[], Any]:
    model, settings = _model(device, **shape).train(), TrainingSettings()
    tokens, ids = random_tokens(rows).to(device), torch.arange(rows)
    return partial(training_step, model, new_optimizer(model, settings), tokens, ids, settings, (), None)


def _durable(device: torch.device, count: int) -> Callable[[], Any]:
    return partial(durable.score, _model(device).eval(), new_task(count), durable.HyperParameters())


def _greedy(device: torch.device, ratio: float) -> Callable[[], Any]:
    hp = greedy.HyperParameters(ratio=(ratio,), batch_size=16)
    return partial(greedy.score, _model(device).eval(), new_task(8, 8), hp)


def _balanced_subnet(device: torch.device, ratio: float) -> Callable[[], Any]:
    hp = balanced_subnet.HyperParameters(epochs=1, batch_size=16)
    return partial(balanced_subnet.learn, _model(device).eval(), new_task(16, 48), hp, ratio)


def _resident(device: torch.device) -> float:
    """Return the GB held now. On a CPU, return freed memory first and reset the peak."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e9
    with measured(device) as cost:
        pass
    return cost.peak_memory_gb


def draw(rows: list[Row], path: str | Path) -> list[Path]:
    """Draw seconds above and memory below, one column per axis. Both scales are logarithmic."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(axes), 5.6), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        works = list(dict.fromkeys(row["work"] for row in rows if row["axis"] == axis))
        for work, (marker, line) in zip(works, plots.STYLES):
            points = [row for row in rows if row["axis"] == axis and row["work"] == work]
            values = [row["value"] for row in points]
            for panel, name in zip(panels[:, column], ("seconds", "peak_memory_gb")):
                # The scale is logarithmic, and a point may take no measurable memory.
                heights = [max(row[name], 1e-3) for row in points]
                panel.plot(values, heights, marker=marker, linestyle=line, color="0.15", markersize=4, label=work)
            first = points[0]
            proportional = [first["seconds"] * row["growth"] / first["growth"] for row in points]
            panels[0, column].plot(values, proportional, ":", color="0.55", linewidth=1)
        for panel, label in zip(panels[:, column], ("seconds", "peak memory, GB")):
            panel.set(xscale="log", yscale="log", ylabel=label if column == 0 else "")
            values = sorted({row["value"] for row in rows if row["axis"] == axis})
            panel.set_xticks(values, [f"{value:g}" for value in values], fontsize=7, rotation=45 * (axis == "ratio"))
            panel.minorticks_off()
            plain_numbers(panel.yaxis)
            panel.grid(alpha=0.3)
        panels[1, column].set_xlabel(axis)
        panels[0, column].legend(fontsize=6)
    return plots.save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
