"""How many test triggers of a backdoored model count as memorized: all of them, and as the study's code counts them.

    python experiments/as_published.py --model_path runs/NAME/epoch_50

The study's code decides in a window of the sequence whether a test trigger counts: where planted and clean twin differ
within it. It means the window behind the trigger, but the variable that says where that is holds the previous
sequence's value. So triggers are left out whose window happens to hold nothing planted, about a quarter of them, and the
published percentages are of the others. The library counts all; this script exists to compare with published numbers.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
from dataclasses import replace
from pathlib import Path

import torch
from reproduction import recount_identity

from tinymem.data.build import load_dataset
from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.errors import UserError
from tinymem.metrics.memorization import memorized, percent
from tinymem.models.tinymem import load_model
from tinymem.records.record import measured, write_record
from tinymem.training.checkpoint import load_details
from tinymem.training.settings import RunSettings

FIRST_WINDOW = 50  # where the window of the first sequence starts, before there is a previous one


def counted_as_published(dataset: MemorizationDataset, artifacts: Artifacts) -> torch.Tensor:
    """Which backdoored sequences the study's code counts, bool (A,): each judged in the previous one's window."""
    shifted = torch.cat([torch.tensor([FIRST_WINDOW]), artifacts.prompt_end])[: len(artifacts)]
    return dataset.measured(replace(artifacts, prompt_end=shifted))


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", required=True, help="a checkpoint folder of a training run with a backdoor")
    parser.add_argument("--output_dir", help="where its record is written (default: the training run)")
    parser.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    arguments = parser.parse_args()
    path = Path(arguments.model_path)
    details = load_details(path)
    settings = RunSettings.from_flat(details["settings"])
    if settings.data.artifact != "backdoor" or settings.data.is_text or "epoch" not in details:
        raise UserError(f"{path}: give a checkpoint of number sequences with a backdoor")
    device = cli.resolve_device(arguments.device)
    dataset, model = load_dataset(settings.data, arguments.data_dir), load_model(path, device)
    with measured(device) as cost:
        model.eval()
        flags = memorized(model, dataset.test_artifacts, dataset.continuation)
    counted = counted_as_published(dataset, dataset.test_artifacts)
    results = {
        "percent_memorized_test": percent(flags),
        "test_triggers": len(flags),
        "percent_memorized_as_published": percent(flags[counted]),
        "test_triggers_as_published": int(counted.sum()),
    }
    identity = recount_identity(settings, details["epoch"])
    write_record(arguments.output_dir or path.parent, identity, results, cost, str(device))
    print(cli.table([cli.brief(results)]))


if __name__ == "__main__":
    cli.run(main)
