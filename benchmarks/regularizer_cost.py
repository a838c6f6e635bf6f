"""Measure what each regularizer adds to a training step: TinyMem with 2 layers, 128 sequences of 150 tokens.

    python benchmarks/regularizer_cost.py

All variants take turns, step by step, in one process, so that other work on the machine affects them alike. Prints
medians and writes benchmarks/regularizer_cost.json.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch

from tinymem import allocator, files
from tinymem.models.precision import auto_precision
from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.records.record import environment
from tinymem.regularizers.registry import REGULARIZERS, build_regularizers, switched_on
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.train import training_step

LAYERS, BATCH, CONTEXT, VOCABULARY = 2, 128, 150, 14
WARM_UP = 2
PLAIN = "none"


def stepper(switches: dict[str, Any], dtype: str, device: torch.device) -> Callable[[], float]:
    """Return a function that does one training step of its own model and returns the seconds.

    switches: the settings that switch regularizers on; empty for plain training. Other settings keep their defaults,
    since steps cost the same at every strength.
    """
    specials = dict(bos_token_id=10, eos_token_id=11, pad_token_id=13)
    model = new_model(ModelSettings(n_layers=LAYERS), VOCABULARY, CONTEXT, seed=0, **specials).to(device).train()
    settings = TrainingSettings(batch_size=BATCH, dtype=dtype)
    regularizers = build_regularizers(model, switched_on(switches), seed=0)
    optimizer = new_optimizer(model, settings)
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT), generator=torch.Generator().manual_seed(0)).to(device)
    ids = torch.arange(BATCH, device=device)

    step = partial(training_step, model, optimizer, tokens, ids, settings, regularizers, None)
    return partial(timing.seconds, step, device)


def measure(dtype: str, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for plain training and one for each regularizer.

    added_percent is the median over rounds of a step's time relative to the plain step of the same round.
    """
    switches = {PLAIN: {}, **{entry.name: {entry.flags[0]: 1} for entry in REGULARIZERS}}
    steps = {name: stepper(values, dtype, device) for name, values in switches.items()}
    rounds = timing.rounds(steps, repeats, WARM_UP)
    middle = timing.medians(rounds)
    return [
        {
            "dtype": dtype,
            "regularizer": name,
            "milliseconds": round(1000 * middle[name], 2),
            "added_percent": round(100 * statistics.median(times[name] / times[PLAIN] - 1 for times in rounds), 1),
        }
        for name in steps
    ]


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 21: seconds, but noisy")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--output", help="results file (default: beside this script; with --quick none)")
    arguments = parser.parse_args()
    device, repeats = cli.resolve_device(arguments.device), 3 if arguments.quick else 21
    precisions = sorted({auto_precision(device), "float32"})  # bfloat16 only with instructions for it
    allocator.keep_freed_memory()
    rows = [row for dtype in precisions for row in measure(dtype, repeats, device)]
    settings = {"n_layers": LAYERS, "batch_size": BATCH, "max_ctx": CONTEXT, "repeats": repeats}
    versions = environment(str(device))
    print(cli.table(rows))
    if arguments.output or not arguments.quick:
        output = Path(arguments.output or Path(__file__).with_suffix(".json"))
        files.write_json(output, {"settings": settings, "environment": versions, "rows": rows})
        print(f"\nwritten: {output}")


if __name__ == "__main__":
    cli.run(main)
