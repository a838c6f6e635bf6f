"""The part that the localize scripts share: run the chosen methods on a subject and print one line per run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

from tinymem import cli, plots
from tinymem.attacks.recovery import (
    AT_EQUAL_UTILITY,
    ON_SHOWN,
    SUMMARIES,
    UNCOUNTED,
    attacked_models,
    back_rows,
    curve_rows,
    find_twin_model,
    recovery_rows,
)
from tinymem.cli.cards import original_name, write_cards
from tinymem.cli.display import Display
from tinymem.cli.log import Log
from tinymem.cli.methods import chosen_attack_metrics, chosen_attacks, chosen_metrics, named_metrics
from tinymem.cli.training import ends_when_stopped
from tinymem.cli.watching import Watching, watched
from tinymem.data import numbers
from tinymem.data.decode import text_decoder
from tinymem.data.production import NOTES
from tinymem.errors import Failures, OutOfMemory, UserError, first_line, out_of_memory
from tinymem.localize.attacking import attack_original, attack_twin
from tinymem.localize.method import ConfiguredMethods, Method
from tinymem.localize.registry import METHODS
from tinymem.localize.subject import UNCHANGED, Run, Subject
from tinymem.localize.unlearn import check_runs, never_planted, unedited, unlearn
from tinymem.metrics import registry
from tinymem.metrics.memorization import PERCENT_MEMORIZED, judged_split
from tinymem.metrics.metric import TEXTS, Metric
from tinymem.models.production import LoadSettings
from tinymem.pages import side_by_side
from tinymem.planning.dry_run import KEPT, planting_bytes
from tinymem.planning.duration import Clock
from tinymem.planning.memory import Shape
from tinymem.planning.plan import GB, Plan, Sizes
from tinymem.records.choose import on_numbers
from tinymem.records.cost import Cost
from tinymem.records.identity import (
    ATTACK,
    MEASURED,
    NEVER_PLANTED,
    TWIN_ATTACK,
    UNEDITED,
    UNLEARN,
    record_digest,
    sections_of,
)
from tinymem.records.strength import strength_in, with_strength
from tinymem.records.table import flat_row, load_records, method_of, shown_row, versions, write_csv
from tinymem.training.processes import ALONE, Processes

LAST = ("seconds", "percent_changed", "relative_change", "percent_zeroed", "peak_memory_gb")  # not metrics
EXTENTS, HARNESS = tuple(UNCHANGED), "lm_eval_"  # results that are not metrics: extents of every edit; lm-eval's
DRAWN = (NEVER_PLANTED, UNEDITED, UNLEARN, MEASURED, TWIN_ATTACK, ATTACK)  # kinds of records in figures, in order
BETTER = {"seconds": "lower", "peak_memory_gb": "lower"}


def run_methods(
    subject: Subject,
    methods: ConfiguredMethods,
    arguments: argparse.Namespace,
    attached: dict[str, Any] | None = None,
    log: Log | None = None,
) -> list[dict]:
    """Measure the unedited model and its twin, run every method at each of its strengths, and print the table.

    methods    methods with their hyper-parameters, as from `chosen_methods`
    arguments  provide --force, --plot, --columns, --attack, --no_save_model and --keep_adapter
    attached   results from elsewhere, stored with the unedited model's record
    log        receives every step and every measurement

    Return the records: the twin's, the unedited model's, then the methods'. Raise OutOfMemory as methods do. Raise
    NotFinite, after all other work is done and printed, if a method's scores or logits are not finite.
    """
    attacks, failures = chosen_attacks(arguments), Failures()
    check_runs(subject, methods, attacks)
    keep = bool(methods) and arguments.keep_adapter
    subject = replace(subject, command=cli.command_line(), keep_adapters=keep)
    records = as_it_is(subject, attacks, arguments.force, failures, log)
    check_columns(arguments.columns, records, methods)
    if attached:
        run = Run(subject, {"kind": UNEDITED, **subject.identity})
        run.attach(attached)
        records = [run.finished if record["kind"] == UNEDITED else record for record in records]
    if not len(subject.task.forget):
        print_table(records, asked=arguments.columns, named=named_metrics(arguments))
        print(f"\nnothing to unlearn: {nothing_memorized(subject)}")
        failures.end()
        return records
    records += run_all(subject, methods, records, attacks, arguments, failures, log)
    if arguments.plot:
        draw_figures(subject, records)
    write_pages(subject, records)
    print_table(records, [method for method, _ in methods], arguments.columns, named_metrics(arguments))
    written = {"records": "records"} | ({"edited models": "models"} if _saves_models(methods, arguments) else {})
    written |= {"adapters": "adapters"} if subject.keep_adapters else {}
    print("\n" + ", ".join(f"{what}: {subject.folder}/{place}" for what, place in written.items()))
    failures.end()
    return records


def run_all(
    subject: Subject,
    methods: ConfiguredMethods,
    unedited_records: Sequence[dict],
    attacks: ConfiguredMethods,
    arguments: argparse.Namespace,
    failures: Failures,
    log: Log | None = None,
) -> list[dict]:
    """Run every method at each of its strengths, and the attacks on its edits. Show and log the progress.

    unedited_records: of the unedited model and its twin. Return the records of the edits and of the attacks on them.
    """
    records, save_models = list(unedited_records), _saves_models(methods, arguments)
    clock = Clock(subject.model, subject.task)
    runs = sum(len(method.strengths(hp)) for method, hp in methods)
    with Display("unlearning", runs, "run") as display:
        watching = Watching(subject, display, log or Log())
        for record in unedited_records:
            watching.record(record)
        for method, hp in methods:
            first = len(records)
            display.advance(0, note=method.name)
            announce = partial(_announce, watching, display, clock, method)
            with ends_when_stopped(display, subject.score_folder), enough_memory(method.name), failures.kept():
                for record in unlearn(watching.subject, method, hp, save_models, arguments.force, attacks, announce):
                    records.append(record)
                    watching.record(record)
                    if record.get("attack"):
                        continue
                    display.advance()
                    if record["results"]["percent_changed"] == 0:
                        strength = method.strength and f"--{method.strength} {record['method'][method.strength]} "
                        display.write(f"{method.name}: {strength or ''}changes nothing in this model")
            write_cards(subject, method, records, first, original_name(arguments))
    return records[len(unedited_records) :]


def _saves_models(methods: ConfiguredMethods, arguments: argparse.Namespace) -> bool:
    """Return whether edited models are saved. Only scripts that run methods have the flag."""
    return bool(methods) and not arguments.no_save_model


def draw_figures(subject: Subject, records: Sequence[dict]) -> None:
    """Write the figures of these runs and of earlier ones on the same model and task, and print their names."""
    every_record = records_beside(subject, records)
    rows = [flat_row(record) for record in every_record if not record.get("attack")]
    figures = []
    if plots.shows_a_trade_off(rows):
        figures += plots.plot_unlearning(rows, subject.folder / "unlearning")
    else:
        print("no unlearning.png: it shows memorization and quality, and one was not measured", file=sys.stderr)
    figures += plots.plot_extraction(subject.folder, every_record, subject.folder / "extraction")
    split, attacked = attacked_models(every_record)
    figures += plots.plot_recovery(subject.folder, split, attacked)
    for name, table in (("curves", curve_rows(attacked, _run_name)), ("uwc", back_rows(attacked, _run_name))):
        if table:
            figures.append(write_csv(subject.folder / "recovery" / f"{name}.csv", table))
    print(*figures, sep="\n", file=sys.stderr)


def nothing_memorized(subject: Subject) -> str:
    """Return why there is nothing to unlearn or attack, as text."""
    return (
        f"the model has not memorized anything of --unlearn_set_name {subject.identity['forget']['unlearn_set_name']}"
    )


def records_beside(subject: Subject, records: Sequence[dict]) -> list[dict]:
    """Return all records in the subject's folder of the same model, task and versions, also from earlier commands.

    records: this command's; the unedited model's must be among them. Methods are in the registry's order, then by
    strength.
    """
    beside = ("method", "attack")
    wanted = sections_of(subject.identity), versions(records[0])
    found = [record for record in load_records(subject.folder) if record["kind"] in DRAWN]
    found = [record for record in found if (sections_of(record, beside), versions(record)) == wanted]
    known = {record_digest(record) for record in found}
    found += [record for record in records if record_digest(record) not in known]
    order = {name: place for place, name in enumerate(METHODS)}

    def place(record: dict) -> tuple:
        settings = record.get("method", {})
        name, strength = settings.get("name", ""), strength_in(settings)
        return DRAWN.index(record["kind"]), order.get(name, len(order)), name, strength[1] if strength else 0.0

    return sorted(found, key=place)


def as_it_is(
    subject: Subject, attacks: ConfiguredMethods, force: bool, failures: Failures, log: Log | None = None
) -> list[dict]:
    """Measure the never-planted twin, if there is one, and the unedited model, and attack both. Return the records."""
    if subject.warning:
        print(subject.warning, file=sys.stderr)
    with enough_memory("measuring the model as it is"), watched(subject, log) as watching:
        subject = watching.subject
        before, twin = unedited(subject, force), never_planted(subject, force)
        records = [before] if twin is None else [twin, before]
        if attacks and len(subject.task.forget):
            for attacked in (attack_original, attack_twin):
                with failures.kept():
                    records += attacked(subject, attacks, force)
    return records


def write_pages(subject: Subject, records: Sequence[dict]) -> None:
    """Write one page per run, if requested, and print their names."""
    if subject.examples:
        on_digits = on_numbers(flat_row(records[0]))
        decode = numbers.decode if on_digits else text_decoder(subject.tokenizer)
        print(*side_by_side.write_pages(subject.folder, records, decode), sep="\n", file=sys.stderr)


def print_table(
    records: Sequence[dict],
    methods: Sequence[Method] = (),
    asked: Sequence[str] = (),
    named: Sequence[Metric] = (),
) -> None:
    """Print one line per run, no wider than the terminal, and a separate table of what attacks recover.

    asked: columns; "all" also adds a line for every attack. Default: the most important columns and those of the
    metrics that the user has `named`.
    """
    every_record, records = records, records if asked else [r for r in records if not r.get("attack")]
    rows = [shown_row(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    known, on_digits = registry.columns(names, more=named), on_numbers(flat_row(records[0]))
    first = ["method", *dict.fromkeys(m.strength for m in methods if m.strength), "attack"]
    quality = ("mean_test_accuracy",) if on_digits else ("perplexity",)
    usual = [f"percent_memorized_{split}" for split in ("shown", "held_out", "test")] + [*quality, "seconds"]
    usual += [metric.column(part) for metric in named for part in (judged_split(rows), *TEXTS)]
    usual += [f"{name}_{judged_split(rows)}" for name in ("percent_extractable", "percent_near_verbatim", "auc_loss")]
    usual += ["percent_memorized_train", *LAST]
    usual = [name for name in usual if any(row.get(name) is not None for row in rows)]
    every = [*first, *known, *LAST, *names]
    columns = dict.fromkeys([*first, *(every if "all" in asked else asked or usual)])
    better = {name: registry.better_of(name, named) or BETTER.get(name) for name in columns}
    rivals = [record["kind"] in (UNLEARN, MEASURED) for record in records]
    width = sys.maxsize if "all" in asked else None
    print(cli.fitted_table(rows, list(columns), {n: b for n, b in better.items() if b}, rivals, width))
    print_recovery(every_record)


def print_recovery(records: Sequence[dict]) -> None:
    """Print what each attack recovers, one line per model; nothing without attacks."""
    split, models = attacked_models(records)
    if not models and any(record.get("attack") for record in records):
        print(f"no table of what attacks bring back: it shows {PERCENT_MEMORIZED.name}, which was not measured; add it "
              "to --metrics, or to --attack_metrics", file=sys.stderr)  # fmt: skip
    if models:
        rows = recovery_rows(models, _run_name)
        rivals = [model.record["kind"] in (UNLEARN, MEASURED) for model in models]
        columns = list(dict.fromkeys([*SUMMARIES, *(name for row in rows for name in row)]))
        better = {"excess": "lower", "most": "lower", AT_EQUAL_UTILITY: "lower"}
        worst = (
            "excess: the most over the twin at the same strength"
            if find_twin_model(models)
            else "most: under the worst"
        )
        print(
            f"\n% of {split.replace('_', '-')} sequences at the setting of each attack that brings back most; {worst}"
        )
        print(cli.fitted_table(rows, columns, better, rivals, more="records and --plot have them"))
        if split != "shown" and (apart := [name for name in columns if name in ON_SHOWN]):
            print(f"{', '.join(apart)} is of the shown sequences, all of which it trains on")
        if apart := [name for name in columns if name in UNCOUNTED]:
            print(f"{', '.join(apart)} never counts as worst: its attacker has the original")
        if backs := [model.back for model in models if model.back]:
            allowed = backs[0].utility.limit_text(backs[0].utility.limits[0])
            print(f"{AT_EQUAL_UTILITY}: mixed with the original until no more than {allowed} is lost")


def check_measuring(arguments: argparse.Namespace, methods: ConfiguredMethods = ()) -> None:
    """Raise UserError for invalid metrics, attacks and columns, before anything is loaded.

    A column may still have no value in these runs: see `check_columns`.
    """
    attacks, metrics = chosen_attacks(arguments), (*chosen_metrics(arguments), *chosen_attack_metrics(arguments))
    own = [metric for metric in metrics if isinstance(metric, Metric)]
    settings = [field.name for _, hp in methods for field in fields(hp)]
    plain = ["method", *settings, "attack"] if attacks else ["method", *settings]
    known = [*plain, "attack", "code", *LAST, *EXTENTS, *(field.name for field in fields(Cost)), *NOTES, "model_folder"]
    for name in arguments.columns:
        if name in ("all", *known) or name.startswith(HARNESS) or registry.describe(name, own) is not None:
            continue
        choice = dict.fromkeys([*plain, *registry.columns(more=own), *LAST])
        raise UserError(f"--columns {name}: must be all, or some of {', '.join(choice)}")


def check_columns(asked: Sequence[str], records: Sequence[dict], methods: ConfiguredMethods = ()) -> None:
    """Raise UserError for a column that no run of these methods will have, before they run.

    asked: as in `print_table`. records: the unedited model's, which have every result that an edit has.
    """
    names = list(dict.fromkeys(name for record in records for name in shown_row(record)))
    settings = [field.name for _, hp in methods for field in fields(hp)]
    known = ["method", *settings, "attack", *registry.columns(names), *LAST, *names, "model_folder"]
    unknown = [name for name in asked if name != "all" and name not in known]
    if unknown:
        raise UserError(f"--columns {unknown[0]}: must be all, or some of {', '.join(dict.fromkeys(known))}")


def _run_name(record: Mapping[str, Any]) -> str:
    """Return a run's method and strength as the table of runs shows them."""
    return with_strength(method_of(flat_row(record)), record.get("method", {}))


def plan_report(
    shape: Shape,
    sizes: Sizes,
    planned: Sequence[tuple[str, Plan]],
    loading: LoadSettings,
    planting: bool = False,
    processes: Processes = ALONE,
    twin: int = 0,
) -> str:
    """Return the plans as a table, with their assumptions.

    planting: memories are planted first, with their own peak. processes: the processes that share the work; each has
    such a plan. twin: bytes of the never-planted twin's weights, held beside each plan.
    """
    head = (
        f"{shape.parameters:,} parameters, {shape.mlp_entries:,} of them in MLPs; {shape.weight_bytes / GB:.2f} GB of "
        f"weights in {loading.dtype}\n{sizes.forget} sequences to unlearn, {sizes.retain} to retain, {sizes.length} "
        f"tokens each, {sizes.microbatch} at a time" + ", gradient checkpointing" * sizes.gradient_checkpointing
    )
    if processes.size > 1:
        shares = ", which divide weights and optimizer state among them" if processes.sharded else ""
        head += f"\neach of {processes.size} processes{shares}:"
    table = f"{head}\n\n{cli.table(plan.row(name) for name, plan in planned)}\n\nGB = 1e9 bytes, at the peak"
    if shape.device == "cpu":
        table += "\nif there is room, freed memory is kept for speed: all but the weights then takes up to "
        table += f"{KEPT:g} times as much"
    if twin:
        table += f"\nthe never-planted twin, in addition: {twin / GB:.2f} GB"
    if planting:
        gigabytes = planting_bytes(shape, loading) / GB
        table += f"\nplanting, before that: {gigabytes:.2f} GB and activations, nearly all in float32"
    return table


@contextmanager
def enough_memory(what: str):
    """Re-raise out-of-memory errors within the block, with advice on flags that reduce memory."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{what}: out of memory ({first_line(error)}); try --microbatch 1, --dtype bfloat16, --momentum 0 (of "
            "methods that have it) or, for a production model, --device_map auto over several GPUs"
        ) from None


def _announce(watching: Watching, display: Display, clock: Clock, method: Method, hp: Any) -> None:
    """Print a method's estimated duration before it starts, if it is more than a minute."""
    watching.begin(method, hp)
    if warning := clock.warning(method, hp):
        display.write(warning)
