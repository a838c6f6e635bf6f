"""Slips of the study's code that published numbers rest on, repeated on our checkpoint. The library has none.

    python experiments/as_published.py --model_path runs/NAME/epoch_50                   how many test triggers count
    python experiments/as_published.py --model_path runs/NAME/epoch_50 --slip zero_out   Zero-Out, its mask inverted

triggers   The study's code decides in a window of the sequence whether a test trigger counts: where planted and clean
           twin differ within it. It means the window behind the trigger, but the variable that says where that is holds
           the previous sequence's value. So triggers are left out whose window happens to hold nothing planted, about a
           quarter of them, and the published percentages are of the others.
zero_out   It means to score a neuron by the loss without it, but its mask keeps that one neuron and drops all others
           of the layer.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from reproduction import SLIP_RATIOS, SLIP_SEQUENCES, SLIPS, slip_identity

from tinymem.data.build import load_dataset
from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.errors import UserError
from tinymem.localize.ranking import neuron_masks
from tinymem.localize.task import TaskSettings, UnlearningTask, unlearning_task
from tinymem.metrics.evaluate import evaluate
from tinymem.metrics.memorization import memorized, percent
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied
from tinymem.models.tinymem import load_model
from tinymem.options import check_options, option
from tinymem.records.record import measured, write_record
from tinymem.sweeps.jobs import find_checkpoint
from tinymem.training.checkpoint import place_beside

FIRST_WINDOW = 50  # where the window of the first sequence starts, before there is a previous one
Results = dict[str, Any]


@dataclass(frozen=True)
class ZeroOut:
    """With --slip zero_out"""

    ratio: tuple[float, ...] = option(SLIP_RATIOS, "shares of each layer's neurons to drop", above=0.0, below=1.0)
    sequences: int = option(SLIP_SEQUENCES, "memorized sequences to rank by, at most", low=1)

    __post_init__ = check_options


def counted_as_published(dataset: MemorizationDataset, artifacts: Artifacts) -> torch.Tensor:
    """Which backdoored sequences the study's code counts, bool (A,): each judged in the previous one's window."""
    shifted = torch.cat([torch.tensor([FIRST_WINDOW]), artifacts.prompt_end])[: len(artifacts)]
    return dataset.measured(replace(artifacts, prompt_end=shifted))


def triggers(model, dataset: MemorizationDataset) -> Iterator[Results]:
    """Yield the test triggers that set the backdoor off: of all, and of those that the study's code counts."""
    flags = memorized(model, dataset.test_artifacts, dataset.continuation)
    counted = counted_as_published(dataset, dataset.test_artifacts)
    yield {
        "percent_memorized_test": percent(flags),
        "test_triggers": len(flags),
        "percent_memorized_as_published": percent(flags[counted]),
        "test_triggers_as_published": int(counted.sum()),
    }


def zero_out(model, dataset: MemorizationDataset, hp: ZeroOut) -> Iterator[Results]:
    """Drops the neurons of each layer that rank first by the loss of some memorized sequences with them alone."""
    task = unlearning_task(model, dataset, TaskSettings())
    if not len(task.forget):
        raise UserError(
            "--slip zero_out: this model has memorized nothing, so that there is no loss to rank neurons by"
        )
    before = evaluate(model, dataset)
    some = task.forget.select(torch.arange(min(hp.sequences, len(task.forget))))
    scores = inverted_zero_out(model, replace(task, forget=some))
    for ratio in hp.ratio:
        with applied(model, Zeros(neuron_masks(find_mlps(model), scores, ratio))):
            after = evaluate(model, dataset)
        lost = 100 * (before["mean_test_accuracy"] - after["mean_test_accuracy"])
        yield {
            "ratio": ratio,
            "sequences": hp.sequences,
            "percent_memorized_test": after["percent_memorized_test"],
            "accuracy_lost": lost,
        }


def inverted_zero_out(model, task: UnlearningTask) -> list[torch.Tensor]:
    """Return the loss of the forget set with one neuron of a layer alone, float32 (inner_dim,) per layer."""
    mlps, scores = find_mlps(model), []
    for mlp in mlps:
        losses = torch.empty(mlp.inner_dim)
        for neuron in range(mlp.inner_dim):
            others = torch.arange(mlp.inner_dim) != neuron
            with applied(model, Zeros(neuron_masks([mlp], [others.float()], 1 - 1 / mlp.inner_dim))):
                losses[neuron] = task.mean_loss(model, task.forget.planted)
        scores.append(losses)
    return scores


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", required=True, help="a checkpoint folder of a training run with a backdoor")
    parser.add_argument("--slip", default="triggers", choices=SLIPS, help="which one (default: triggers)")
    cli.add_options(parser, ZeroOut)
    parser.add_argument(
        "--output_dir",
        help="where its records are written (default: the training run; for a model outside it, runs/NAME)",
    )
    parser.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    arguments = parser.parse_args()
    hp, own = cli.collect(ZeroOut, arguments), cli.given(ZeroOut, arguments)
    if own and arguments.slip != "zero_out":
        raise UserError(f"--{next(iter(own))}: only with --slip zero_out")
    path = Path(arguments.model_path)
    checkpoint = find_checkpoint(path)
    settings = checkpoint.settings
    if settings.data.artifact != "backdoor" or settings.data.is_text:
        raise UserError(f"{path}: give a checkpoint of number sequences with a backdoor")
    device = cli.resolve_device(arguments.device)
    dataset, model = load_dataset(settings.data, arguments.data_dir), load_model(path, device).eval()
    with measured(device) as cost:
        rows = list(triggers(model, dataset) if arguments.slip == "triggers" else zero_out(model, dataset, hp))
    for row in rows:
        own = {name: value for name, value in row.items() if name in vars(hp)}
        results = {name: value for name, value in row.items() if name not in own}
        identity = slip_identity(settings, checkpoint.epoch, arguments.slip, **own)
        write_record(arguments.output_dir or place_beside(path), identity, results, cost, str(device))
    print(cli.table(map(cli.brief, rows)))


if __name__ == "__main__":
    cli.run(main)
