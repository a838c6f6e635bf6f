"""What the study's code does otherwise, repeated on our checkpoints: slips that published numbers rest on.

    python experiments/as_published.py --model_path runs/NAME/epoch_50                   how many test triggers count
    python experiments/as_published.py --model_path runs/NAME/epoch_50 --slip zero_out   Zero-Out, its mask inverted
    python experiments/as_published.py --model_path runs/NAME/epoch_50 --method balanced_subnet --differences mixture
    python experiments/as_published.py --model_path runs/*/epoch_50 --study              every method and difference
    python experiments/as_published.py --small --study                                   the same on three small models

triggers   The study's code counts a test trigger only if the planted sequence and its clean twin differ within a
           window. The window should begin after the trigger, but the code places it by the last one that it counted. So
           it leaves out a quarter of the triggers or more, and the published percentages are of the others.
zero_out   The study's code should score a neuron by the loss without it, but its mask keeps that neuron and drops all
           others of the layer.

--differences runs a method with exactly these differences from the library, or with `none` or `all` of them. --study
runs it with none, with all, with each one alone and with all but each one; without --method it runs every method. The
settings are the published ones (PUBLISHED_SETTINGS in reproduction.py); flags after --method change them, and
--method METHOD --help lists them. The end of this help, and published_differences.py, explain each difference.

Every run leaves a record next to the checkpoint's training. A repeated command runs only what is missing. At the end a
table shows means over all models that have records there; as_published.md and .csv hold it, too. --report writes only
these.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from published_differences import DIFFERENCES, METHODS, applicable, chosen, counted_as_published, study
from published_report import write_report
from published_runs import Model, Names, check, runs
from reproduction import PUBLISHED_SETTINGS, SLIP_RATIOS, SLIP_SEQUENCES, SLIPS, slip_identity

from tinymem import allocator, files
from tinymem.data.build import load_dataset
from tinymem.data.dataset import MemorizationDataset
from tinymem.errors import Failures, UserError
from tinymem.leaderboard.bench import TrainedBench
from tinymem.leaderboard.cases import SEEDS, find_cases
from tinymem.localize.method import Method
from tinymem.localize.ranking import neuron_masks
from tinymem.localize.registry import find_methods
from tinymem.localize.task import TaskSettings, UnlearningTask, unlearning_task
from tinymem.metrics.evaluate import evaluate
from tinymem.metrics.memorization import memorized, percent
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied
from tinymem.models.tinymem import load_model
from tinymem.options import option, settings
from tinymem.records.cost import measured
from tinymem.records.record import write_record
from tinymem.sweeps.jobs import Checkpoint, Common, find_checkpoint, training_words
from tinymem.training.checkpoint import place_beside

ROOT = Path(__file__).resolve().parents[1]
OUTPUT_DIR = "runs/as_published"
Results = dict[str, Any]


@settings
class ZeroOut:
    """With --slip zero_out"""

    ratio: tuple[float, ...] = option(SLIP_RATIOS, "shares of each layer's neurons to drop", above=0.0, below=1.0)
    sequences: int = option(SLIP_SEQUENCES, "memorized sequences to rank by, at most", low=1)


def triggers(model, dataset: MemorizationDataset) -> Iterator[Results]:
    """Yield the test triggers that set the backdoor off: of all, and of those that the study's code counts."""
    flags = memorized(model, dataset.test_artifacts, dataset.continuation)
    counted = counted_as_published(dataset, dataset.test_artifacts)
    yield {
        "percent_memorized_test": percent(flags),
        "test_triggers": len(flags),
        "percent_memorized_counted": percent(flags[counted]),
        "test_triggers_counted": int(counted.sum()),
    }


def zero_out(model, dataset: MemorizationDataset, hp: ZeroOut) -> Iterator[Results]:
    """Drop the neurons of each layer that rank first by the loss of some memorized sequences with them alone."""
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
        accuracy, left = before["mean_test_accuracy"], after["mean_test_accuracy"]
        assert accuracy is not None and left is not None  # there are test sets
        yield {
            "ratio": ratio,
            "sequences": hp.sequences,
            "percent_memorized_test": after["percent_memorized_test"],
            "accuracy_lost": 100 * (accuracy - left),
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


def parse() -> argparse.Namespace:
    """Return the arguments, with `mode`: slip, differences, study or report. Raise UserError for flags it has not."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method", nargs="?")  # without a name the parser below complains
    method = first.parse_known_args()[0].method
    parser = cli.Parser(__doc__, epilog=_differences())
    parser.add_argument("--model_path", nargs="+", default=[], help="checkpoint folders of training runs on number "
                        "sequences; of a slip one, with a backdoor")  # fmt: skip
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--slip", choices=SLIPS, help="repeat a slip (default: triggers)")
    modes.add_argument("--differences", nargs="+", metavar="NAME", help="run --method with these differences alone")
    modes.add_argument("--study", action="store_true", help="run with none, each alone, all but each, and all")
    modes.add_argument("--report", action="store_true", help="run nothing, write the tables from the records there are")
    parser.add_argument("--method", metavar="METHOD", help=f"one of {', '.join(METHODS)}")
    parser.add_argument(
        "--attack", choices=["relearn"], help="relearn some of what was forgotten, and measure the rest"
    )
    parser.add_argument("--small", action="store_true", help="train three small models, and take these")
    parser.add_argument(
        "--holdout_fraction", type=float, default=0.0, help="share of the forget set kept from the method"
    )
    parser.add_argument("--force", action="store_true", help="repeat finished runs")
    if method is None:
        cli.add_options(parser, ZeroOut)
    else:
        cli.add_options(parser, _method(method).hyper_parameters, **PUBLISHED_SETTINGS[method])
    parser.add_argument(
        "--output_dir",
        help="where records are written (default: the training run; for a model outside it, runs/NAME)",
    )
    parser.add_argument("--results_dir", help=f"where tables are written (default: {OUTPUT_DIR})")
    parser.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    arguments = parser.parse_args()
    given = vars(arguments)
    arguments.mode = next((mode for mode in ("differences", "study", "report") if given[mode]), "slip")
    check_mode(arguments)
    return arguments


def check_mode(arguments: argparse.Namespace) -> None:
    """Raise UserError for a flag that the mode does not have, and for one that it lacks."""
    mode, given = arguments.mode, vars(arguments)
    for flag in ("method", "attack", "holdout_fraction", "force", "small", "results_dir"):
        reported = flag in ("small", "results_dir")
        if given[flag] and (mode == "slip" or mode == "report" and not reported):
            raise UserError(f"--{flag}: only with --differences or --study" + ", or --report" * reported)
    own = cli.given(ZeroOut, arguments) if arguments.method is None else ()
    if own and (mode, arguments.slip) != ("slip", "zero_out"):
        raise UserError(f"--{next(iter(own))}: only with --slip zero_out, or after --method")
    if mode == "differences" and arguments.method is None:
        raise UserError(f"--differences: whose? Give --method, one of {', '.join(METHODS)}")
    if arguments.small and (arguments.model_path or mode == "differences"):
        raise UserError("--small: trains its own models for --study; leave --model_path and --differences out")
    if not arguments.small and not arguments.model_path:
        raise UserError("--model_path: give a checkpoint folder" + ", or --small" * (mode != "slip"))
    if mode == "slip" and len(arguments.model_path) > 1:
        raise UserError("--model_path: one checkpoint for a slip")


def _differences() -> str:
    lines = [f"  {name}: {each.meaning} ({', '.join(each.methods)})" for name, each in DIFFERENCES.items()]
    return "\n".join(["differences (of the methods in brackets):", *lines])


def _method(name: str) -> Method:
    """Return one of METHODS. Raise UserError for another name."""
    applicable(name, "backdoor")
    return find_methods([name], "--method")[0]


def repeat_slip(arguments: argparse.Namespace, device: torch.device) -> None:
    """Repeat a slip on a checkpoint, write its records and print them."""
    slip = arguments.slip or SLIPS[0]
    hp = cli.collect(ZeroOut, arguments)
    path = Path(arguments.model_path[0])
    checkpoint = number_checkpoint(path)
    trained = checkpoint.settings
    if trained.data.artifact != "backdoor":
        raise UserError(f"{path}: give a checkpoint of number sequences with a backdoor")
    dataset, model = load_dataset(trained.data, arguments.data_dir), load_model(path, device).eval()
    with measured(device) as cost:
        rows = list(triggers(model, dataset) if slip == "triggers" else zero_out(model, dataset, hp))
    for row in rows:
        own = {name: value for name, value in row.items() if name in vars(hp)}
        results = {name: value for name, value in row.items() if name not in own}
        identity = slip_identity(trained, checkpoint.epoch, slip, **own)
        write_record(arguments.output_dir or place_beside(path), identity, results, cost, str(device))
    print(cli.table(map(cli.brief, rows)))


def number_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint. Raise UserError for one of a model of text."""
    checkpoint = find_checkpoint(path)
    if checkpoint.settings.data.is_text:
        raise UserError(f"{path}: give a checkpoint of number sequences, not of text")
    return checkpoint


def train_small(arguments: argparse.Namespace) -> list[Path]:
    """Train the leaderboard's small models with a backdoor, as far as they are not; return their last checkpoints."""
    (case,) = find_cases(["backdoor"], small=True, trials=1)
    common, paths = Common.of(arguments), []
    for seed in SEEDS:
        folder = Path(OUTPUT_DIR).absolute() / "small" / f"seed{seed}"
        paths.append(folder / f"epoch_{case.trained.training.epochs}")
        if arguments.mode == "study":
            script, *flags = training_words(TrainedBench(case, seed).settings, folder, common.words)
            cli.run_script([ROOT / script, *flags])
    return paths


def run_differences(arguments: argparse.Namespace, paths: Sequence[Path], device: torch.device) -> None:
    """Run what --differences or --study ask for on every model, and print a line per record."""
    task, attacked = TaskSettings(holdout_fraction=arguments.holdout_fraction), bool(arguments.attack)
    asked, own = arguments.differences, arguments if arguments.method else argparse.Namespace()
    plan: list[tuple[Path, Model, Method, Any, list[Names]]] = []
    for path in paths:  # before any work: every model must have what is asked for
        checkpoint = number_checkpoint(path)
        folder = files.writable_folder(arguments.output_dir or place_beside(path))
        model = Model.load(checkpoint, folder, task, arguments.data_dir, device)
        for name in [arguments.method] if arguments.method else METHODS:
            kind = checkpoint.settings.data.artifact
            sets = study(name, kind) if asked is None else [chosen(asked, name, kind)]
            method = _method(name)
            hp: Any = cli.collect(method.hyper_parameters, own, **PUBLISHED_SETTINGS[name])
            check(model, hp, sets, attacked)
            plan.append((path, model, method, hp, sets))
    failures = Failures()
    for path, model, method, hp, sets in plan:
        with failures.kept(f"{path}"):
            for record in runs(model, method, hp, sets, attacked, arguments.force):
                tell(path, record)
    failures.end()


def tell(path: Path, record: dict[str, Any]) -> None:
    """Print a record's main results on one line."""
    method, results = record.get("method"), record["results"]
    if method is None or record.get("attack"):
        return
    shown = {"memorized": "percent_memorized_test", "training rows": "percent_memorized_train", "lost": "accuracy_lost"}
    found = [f"{name} {results[key]:.2f}" for name, key in shown.items() if results.get(key) is not None]
    what = " ".join([method["name"], *(method["differences"] or ["none"])])
    print(f"{path}: {what}: {', '.join(found)}, {record['cost']['seconds']:.1f} s", flush=True)


def main() -> None:
    arguments = parse()
    device = cli.resolve_device(arguments.device)
    if arguments.mode == "slip":
        return repeat_slip(arguments, device)
    allocator.keep_freed_memory()
    failures = Failures()
    with files.made_folder(arguments.results_dir or OUTPUT_DIR, " with --results_dir") as target:
        paths = train_small(arguments) if arguments.small else [Path(path) for path in arguments.model_path]
        if arguments.mode == "report":
            for path in arguments.model_path:
                number_checkpoint(Path(path))
        else:
            with failures.kept():
                run_differences(arguments, paths, device)
        folders = [Path(arguments.output_dir)] if arguments.output_dir else [place_beside(path) for path in paths]
        try:
            write_report(dict.fromkeys(folders), target)
        except UserError:
            failures.end()
            raise
    failures.end()


if __name__ == "__main__":
    cli.run(main)
