"""Measurements without a recipe to compare with: start-up, time outside the training steps, profile of a step."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
from cases_training import number_model, random_tokens

from tinymem import plots
from tinymem.data.build import load_dataset
from tinymem.data.settings import DataSettings
from tinymem.models.tinymem import ModelSettings
from tinymem.training import checkpoint
from tinymem.training.fit import SAVE_SECONDS
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.train import measured_row, training_step

ROOT = Path(__file__).parent.parent
SCRIPT = '\nif __name__ == "__main__":\n    cli.run('  # how each of our scripts ends
# Parts of a step's time: an operation belongs to the first part whose words occur in its name.
KINDS = {
    "optimizer": ("adam",),
    "layer norm": ("layer_norm", "layernorm", "gammabeta"),
    "matrix products": ("mm", "nvjet"),
    "softmax and loss": ("softmax", "nll"),
    "copies, casts, joins": ("copy", "cat", "fill", "zero", "memcpy", "memset"),
    "embeddings": ("embedding", "index"),
    "sums, ReLU and the rest": ("",),
}


def startup(repeats: int) -> list[dict[str, Any]]:
    """Return the seconds until the slowest script prints its `--help`, and until tinymem is imported."""
    ours = (p for p in sorted(ROOT.glob("**/*.py")) if p.relative_to(ROOT).parts[0] not in (".venv", "tests", "build"))
    internal = "as_it_comes.py"  # only run.py starts it
    scripts = [path for path in ours if SCRIPT in path.read_text("utf-8") and path.name != internal]
    times = {script: _median(repeats, script, "--help") for script in scripts}
    slowest = max(times, key=times.get)
    importing = _median(repeats, "-c", "import tinymem") - _median(repeats, "-c", "pass")
    return [
        {"name": "help", "work": f"--help of {slowest.relative_to(ROOT)}, the slowest of {len(scripts)} scripts",
         "ours_seconds": times[slowest], "goal_seconds": 0.4},
        {"name": "import", "work": "importing tinymem", "ours_seconds": max(importing, 0.0), "goal_seconds": 0.1},
    ]  # fmt: skip


def _median(repeats: int, *arguments: object) -> float:
    command = [sys.executable, *map(str, arguments)]
    run = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return statistics.median(timing.seconds(run, torch.device("cpu")) for _ in range(repeats + 1))


def outside_the_steps(device: torch.device, quick: bool) -> dict[str, float]:
    """Return percentages of a training run with default settings: data, evaluation, checkpoints, plots.

    Each part is measured once, a step three times, and the run is computed from these. quick: a tenth of the sequences.
    """
    settings = TrainingSettings()
    tenth = dict(num_7=2000, num_2=300, num_3=300, num_4=300, num_5=300, num_test=100, num_noise=100)
    data = DataSettings(**(tenth if quick else {}))
    model = number_model(ModelSettings().n_layers, device).train()
    optimizer = new_optimizer(model, settings)
    with tempfile.TemporaryDirectory() as folder:
        took = {"data": timing.seconds(lambda: load_dataset(data, folder), device)}
        dataset = load_dataset(data, folder)
        tokens, ids = dataset.sequences.to(device), torch.arange(settings.batch_size)
        run = partial(training_step, model, optimizer, settings=settings, regularizers=(), ignored_token=None, ids=ids)
        step = statistics.median(timing.seconds(lambda: run(tokens=tokens[ids]), device) for _ in range(3))
        steps = settings.epochs * -(-len(dataset) // settings.batch_size)
        saved = Path(folder) / checkpoint.STATE
        save = partial(checkpoint.save_state, saved, model, optimizer, (), checkpoint.Progress())
        measurements = -(-settings.epochs // settings.checkpoint_every)
        rows: list[dict[str, Any]] = []
        measure = partial(measured_row, model, dataset, 1, 1.0, settings.train_microbatch)
        took["evaluation"] = measurements * timing.seconds(lambda: rows.append(measure()), device)
        once = timing.seconds(lambda: checkpoint.save_model(Path(folder) / "model", model, {}), device)
        state = timing.seconds(save, device)
        took["checkpoints"] = measurements * (once + 2 * state) + steps * step / SAVE_SECONDS * state
        rows = [{**rows[0], "epoch": epoch} for epoch in range(measurements)]
        took["plots"] = timing.seconds(lambda: plots.plot_training(rows, Path(folder) / "plot"), device)
    whole = steps * step + sum(took.values())
    return {name: round(100 * value / whole, 3) for name, value in took.items()}


def profile(device: torch.device, dtype: str, batch: int) -> dict[str, float]:
    """Return the profile of a training step with two layers, in percent of the time in operations."""
    from torch.profiler import ProfilerActivity, profile

    model, tokens = number_model(2, device).train(), random_tokens(batch).to(device)
    settings = TrainingSettings(dtype=dtype)
    optimizer, ids = new_optimizer(model, settings), torch.arange(batch)
    run = partial(training_step, model, optimizer, tokens, ids, settings, (), None)
    run()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        run()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        kind = next(kind for kind, words in KINDS.items() if any(word in event.key.lower() for word in words))
        spent[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {kind: round(100 * spent[kind] / spent.total(), 1) for kind in KINDS}
