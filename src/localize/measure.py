"""Measure any model, alone or as an edit of another one, with the metrics and attacks used for TinyMem's own edits.

    python src/localize/measure.py my_folder --edit_of runs/NAME/epoch_50 --name my_method --attack quantize
    python src/localize/measure.py my_folder --data_name increment --backdoor
    python src/localize/measure.py my_folder --edit_of EleutherAI/pythia-70m --name my_method \\
        --memorized pythia_mem_data/FILE --random pythia_mem_data/FILE

With --edit_of, the forget set, the splits and the data are those of the original model, so the record appears in the
same tables and figures as TinyMem's own edits. The data is a TinyMem dataset if the original is a checkpoint of a
TinyMem training run or --data_name is given; otherwise it is that of a production model (see prod_grad.py).
"""

from tinymem import cli

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinymem import allocator, files
from tinymem.cli import production, subject
from tinymem.cli.log import Log
from tinymem.cli.methods import add_measuring_options, chosen_attacks, named_metrics
from tinymem.cli.unlearning import (
    as_it_is,
    check_columns,
    check_measuring,
    nothing_memorized,
    print_table,
    run_methods,
    write_pages,
)
from tinymem.cli.watching import watched
from tinymem.errors import Failures, UserError, renamed
from tinymem.localize.registry import METHODS
from tinymem.localize.subject import Run, Subject
from tinymem.localize.unlearn import check_runs, finish
from tinymem.models.difference import check_same_tokens, edit_between
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.production import LoadSettings, open_causal_lm, tokenizer_in
from tinymem.models.tinymem import load_model
from tinymem.records.cost import Cost
from tinymem.records.identity import MEASURED, NEVER_PLANTED, UNEDITED
from tinymem.training.checkpoint import SETTINGS, load_details, made_by

DATA_FLAG = "--data_name"


def add_own_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that no other script has."""
    parser.add_argument("model", help="the model to measure: a folder, or a name on the hub")
    parser.add_argument("--edit_of", metavar="ORIGINAL", help="the model that MODEL was made from")
    parser.add_argument("--name", help="with --edit_of: name of the method that made it (default: external)")
    parser.add_argument("--seconds", type=cli.seconds, metavar="S",
                        help="seconds that the edit took (default: unknown)")  # fmt: skip
    parser.add_argument("--lm_eval", metavar="FILE", help="results.json of lm-evaluation-harness, kept with the record")


def parse() -> tuple[argparse.Namespace, bool]:
    """Return the arguments, and whether the data is a TinyMem dataset, which decides the available flags."""
    words = sys.argv[1:]
    models = named_models(words)
    original = (models.edit_of or models.model) if models else None
    if models:
        check_place("", models.model)
        check_place("--edit_of ", models.edit_of)
    on_numbers = original is None or _on_our_data(original) or any(w.split("=")[0] == DATA_FLAG for w in words)
    parser = cli.Parser(__doc__, usage="%(prog)s MODEL [options]")
    add_own_options(parser)
    cli.add_list_option(parser)
    add_measuring_options(parser)
    (subject if on_numbers else production).add_subject_options(parser)
    cli.add_log_options(parser)
    parser.set_defaults(dry_run=False)
    arguments = parser.parse_args()
    if arguments.edit_of is None and (arguments.name is not None or arguments.seconds is not None):
        raise UserError(f"--{'seconds' if arguments.name is None else 'name'}: only with --edit_of")
    if arguments.name in (*METHODS, UNEDITED, NEVER_PLANTED):
        raise UserError(f"--name {arguments.name}: stands for the edits that are made here; give it a name of its own")
    arguments.name = "external" if arguments.name is None else arguments.name
    setattr(arguments, "model_path" if on_numbers else "model_name", arguments.edit_of or arguments.model)
    return arguments, on_numbers


def named_models(words: Sequence[str]) -> argparse.Namespace | None:
    """Return the arguments that name models, read before the other flags are known; None to print the help."""
    if not words or {"-h", "--help"} & set(words):
        return None
    parser = cli.Parser(__doc__, add_help=False)
    add_own_options(parser)
    cli.add_list_option(parser)
    return parser.parse_known_args(words)[0]


def check_place(flag: str, place: str | None) -> None:
    """Raise UserError unless a model's place, if given, is a folder or may be a name on the hub."""
    if place and Path(place).is_file():
        raise UserError(f"{flag}{place}: is a file; give a model's folder, or a name on the hub")
    if place and not Path(place).exists() and not _may_be_on_the_hub(place):
        raise UserError(f"{flag}{place}: no such folder")


def _on_our_data(folder: str) -> bool:
    """Return whether a folder's model was trained on a TinyMem dataset. Edits of others have a tinymem.json too."""
    if not (Path(folder) / SETTINGS).is_file():
        return False
    try:
        return "data_name" in load_details(Path(folder))["settings"]
    except UserError:  # damaged: reported when it is opened
        return True


def _may_be_on_the_hub(place: str) -> bool:
    """Return whether this is NAME or OWNER/NAME; anything else is a path."""
    return place.count("/") <= 1 and not place.startswith((".", "/", "~"))


def harness_results(path: str) -> dict[str, float]:
    """Return the results in an lm-evaluation-harness file as columns lm_eval_TASK_METRIC.

    Results on filtered answers get columns lm_eval_TASK_METRIC_FILTER. Raise UserError if there are no results.
    """
    content = files.read_json(path, required=("results",), remedy="--lm_eval takes a file of lm-evaluation-harness")
    tasks = content["results"] if isinstance(content["results"], dict) else {}
    found = {
        f"lm_eval_{task}_{metric.removesuffix(',none').replace(',', '_')}": float(value)
        for task, metrics in tasks.items() if isinstance(metrics, dict)
        for metric, value in metrics.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }  # fmt: skip
    if not found:
        raise UserError(f"--lm_eval {path}: no results of lm-evaluation-harness in it (results -> task -> metric)")
    return found


def as_original(folder: str) -> str:
    """Return a line that says what a model counts as without --edit_of, and which method made it, if that is known."""
    method = made_by(folder)
    edit = f"was made by {method}, but " if method else ""
    return (
        f"{folder}: {edit}counts as unedited, so that what is shown to a method is what it has memorized itself "
        "(always 100 %); for an edit, give the model that it was made from: --edit_of ORIGINAL"
    )


def open_edit(arguments: argparse.Namespace, loading: LoadSettings | None, device: Any) -> tuple[Any, Any]:
    """Return the edited model and its tokenizer. loading: of a production model; None: TinyMem's data is measured."""
    if loading is None:
        return load_model(arguments.model, device), tokenizer_in(Path(arguments.model))
    with renamed("--model_name", ""):
        return open_causal_lm(arguments.model, None, device, loading.dtype, loading.device_map)


def measure_edit(
    arguments: argparse.Namespace,
    original: Subject,
    loading: LoadSettings | None,
    attached: dict[str, Any],
    log: Log | None,
) -> None:
    """Measure the model as an edit of its original, attack it and print the table.

    loading: as in `open_edit`. attached: results from elsewhere, stored with the edit's record.
    """
    model, tokenizer = open_edit(arguments, loading, original.model.device)
    check_same_tokens(original.tokenizer, tokenizer, arguments.model)
    edit = edit_between(original.model, model, arguments.model)
    identity: dict[str, Any] = {"kind": MEASURED, "parent": original.unedited_digest, **original.identity}
    identity["method"] = {"name": arguments.name, "weights": weights_fingerprint(model)}
    attacks = chosen_attacks(arguments) if len(original.task.forget) else []
    if arguments.attack and not attacks:
        print(f"no attacks: {nothing_memorized(original)}", file=sys.stderr)
    check_runs(original, [], attacks)
    failures = Failures()
    records = as_it_is(original, attacks, arguments.force, failures, log)
    check_columns(arguments.columns, records)
    with failures.kept(f"{arguments.name} in {arguments.model}"), watched(original, log) as watching:
        run = Run(watching.subject, identity)
        records += finish(run, edit, Cost(arguments.seconds, None), attacks, arguments.force)
        for record in records:
            watching.record(record)
    if attached and run.record:
        run.attach(attached)
        records = [run.record if record["kind"] == MEASURED else record for record in records]
    write_pages(original, records)
    print_table(records, asked=arguments.columns, named=named_metrics(arguments))
    print(f"\nrecords: {original.folder}/records")
    failures.end()


def main() -> None:
    arguments, on_numbers = parse()
    check_measuring(arguments)
    log = cli.open_log(arguments)
    allocator.keep_freed_memory()
    attached = harness_results(arguments.lm_eval) if arguments.lm_eval else {}
    loading = None if on_numbers else cli.collect(LoadSettings, arguments)
    if loading is None:
        original = subject.load_subject(arguments)
    else:
        with renamed("--model_name", "--edit_of" if arguments.edit_of else ""):
            original = production.load_subject(arguments, loading, [])
    if arguments.edit_of is None:
        print(as_original(arguments.model), file=sys.stderr)
        run_methods(original, [], arguments, attached=attached, log=log)
    else:
        measure_edit(arguments, original, loading, attached, log)


if __name__ == "__main__":
    cli.run(main)
