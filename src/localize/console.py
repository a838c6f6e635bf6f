"""What the localize scripts share: they run the chosen methods on their subject and print one line a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from tinymem import cli, plots
from tinymem.errors import NotFinite, OutOfMemory, first_line, out_of_memory
from tinymem.localize.dry_run import KEPT, planting_bytes
from tinymem.localize.plan import GB, Plan, Sizes, plan_rows
from tinymem.localize.registry import Method
from tinymem.localize.unlearn import Subject, unedited, unlearn
from tinymem.models.memory import Shape
from tinymem.models.production import LoadSettings
from tinymem.records.table import flat_row

COLUMNS = ("method", "ratio", "percent_memorized_train", "percent_memorized_test", "percent_memorized_shown")
COLUMNS += ("percent_memorized_held_out", "percent_clean_recovery", "mean_test_accuracy", "perplexity")
COLUMNS += ("perplexity_batch_mean", "percent_zeroed", "seconds", "peak_memory_gb")


def run_methods(
    subject: Subject,
    methods: Sequence[tuple[Method, Any]],
    arguments: argparse.Namespace,
    others: Sequence[dict] = (),
) -> list[dict]:
    """Measures the model as it is, then runs every method for each of its ratios; prints the table at the end.

    methods    with their hyper-parameters, as from `chosen_methods`
    arguments  --force, --plot and --no_save_model are read
    others     records to compare with, at the head of the table

    Returns the records, after the others the unedited model's first. OutOfMemory when a method does; NotFinite, when all
    that can be done is done and printed, where a method's scores or logits are not finite.
    """
    with enough_memory("measuring the model as it is"):
        records = [*others, unedited(subject, arguments.force)]
    if not len(subject.task.unlearn):
        print_table(records)
        print(f"\nnothing to unlearn: the model has not memorized anything of --unlearn_set_name "
              f"{subject.identity['unlearn_set_name']}")  # fmt: skip
        return records
    save_models, failures = not arguments.no_save_model, []
    with cli.progress_bar(total=sum(len(hp.ratio) for _, hp in methods), unit="run") as bar:
        for method, hp in methods:
            bar.set_postfix_str(method.name)
            with enough_memory(method.name), _kept(failures):
                for record in unlearn(subject, method, hp, save_models, arguments.force, on_estimate=_say(bar, method)):
                    records.append(record)
                    bar.update()
                    if record["results"]["percent_zeroed"] == 0:
                        ratio = record["settings"]["ratio"]
                        _note(bar, f"{method.name}: --ratio {ratio} drops nothing in a model of this size")
    if arguments.plot:
        figures = plots.plot_unlearning(list(map(flat_row, records)), subject.folder / "unlearning")
        print(*figures, sep="\n", file=sys.stderr)
    print_table(records)
    print(f"\nrecords: {subject.folder}/records" + (f", edited models: {subject.folder}/models" if save_models else ""))
    if failures:
        raise failures[0] if len(failures) == 1 else NotFinite("; ".join(map(str, failures)))
    return records


@contextmanager
def _kept(failures: list[NotFinite]):
    """Keep a NotFinite of the block for the end: other methods can still run."""
    try:
        yield
    except NotFinite as failure:
        failures.append(failure)


def print_table(records: Sequence[dict]) -> None:
    """One line a run; the accuracies of the single test sets stand at the end. What no run has is left out."""
    accuracies = [name for name in records[0]["results"] if name.startswith("accuracy_")]
    rows = [flat_row(record) for record in records]
    columns = [name for name in (*COLUMNS, *accuracies) if any(row.get(name) is not None for row in rows)]
    print(cli.table(map(cli.brief, rows), cli.brief(dict.fromkeys(columns))))


def plan_report(
    shape: Shape,
    sizes: Sizes,
    planned: Sequence[tuple[str, Plan]],
    loading: LoadSettings,
    planting: bool = False,
) -> str:
    """The plans as a table, with what they are for. planting: memories are planted first, which has a peak of its own."""
    head = (
        f"{shape.parameters:,} parameters, {shape.mlp_entries:,} of them in MLPs; {shape.weight_bytes / GB:.2f} GB of "
        f"weights in {loading.dtype}\n{sizes.unlearn} sequences to unlearn, {sizes.retain} to keep, {sizes.length} "
        f"tokens each, {sizes.microbatch} at a time" + ", gradient checkpointing" * sizes.gradient_checkpointing
    )
    table = f"{head}\n\n{cli.table(plan_rows(planned))}\n\nGB = 1e9 bytes, all at the moment of the peak"
    if shape.device == "cpu":
        table += "\nwhere there is room, freed memory is kept for speed: all but the weights then takes up to "
        table += f"{KEPT:g} times as much"
    if planting:
        gigabytes = planting_bytes(shape, loading) / GB
        table += f"\nplanting, before that: {gigabytes:.2f} GB and activations, nearly all in float32"
    return table


@contextmanager
def enough_memory(what: str):
    """Says of running out of memory within the block which flags help."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{what}: out of memory ({first_line(error)}); try --microbatch 1, --dtype bfloat16, --momentum 0 (of "
            "methods that have it) or, for a production model, --device_map auto over several GPUs"
        ) from None


def _say(bar, method: Method):
    return lambda seconds: _note(bar, f"{method.name}: scoring will take about {duration(seconds)}")


def _note(bar, text: str) -> None:
    bar.write(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds in words that a person can plan with: 40 s, 3 min, 2.5 h, 4 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
