"""Is it gone, or only hidden? Every unlearning method under every attack, against the never-planted twin.

    python experiments/attacks.py                               numbers with noise and with backdoors, text; three seeds
    python experiments/attacks.py --cases noise --methods balanced_subnet activations --seeds 0
    python experiments/attacks.py --report                      only tables and figures, from the records that are there

For every case and seed it trains a small model with planted sequences and its never-planted twin. On the first seed
each method runs at all settings of its small grid; the setting that leaves least of the *validation* sequences, at
an accuracy within a point (text: perplexity within 10 %), is the chosen one. It runs on every seed and is attacked there.
Writes results/attacks/: CASE/records.jsonl.gz, ATTACKS.md, attacks.csv, and one figure per method and case.
Runs the ordinary scripts, whose commands it prints. Interrupted, or started again, it does only what is missing.
"""

from tinymem import cli

# isort: split
import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinymem import files, plots
from tinymem.attacks.recovery import Attacked, attacked_models, averaged, twin_of
from tinymem.attacks.registry import ATTACKS
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.localize.method import Method
from tinymem.localize.registry import find_methods
from tinymem.localize.task import TaskSettings
from tinymem.models.tinymem import ModelSettings
from tinymem.plots.labels import strength_of
from tinymem.records.bundle import NAME, read_bundle, write_bundle
from tinymem.records.choose import on_numbers
from tinymem.records.identity import NEVER_PLANTED, UNEDITED, UNLEARN, record_digest, run_key
from tinymem.records.interval import mean_and_interval
from tinymem.records.table import flat_row, load_records, markdown, versions, write_csv
from tinymem.sweeps.hp_grid import SMALL, grid_of, hyper_parameters
from tinymem.sweeps.job import Job
from tinymem.sweeps.jobs import Checkpoint, Common, localize_jobs, training_words
from tinymem.training.settings import RunSettings, TrainingSettings
from tinymem.training.twin import twin_of as twin_settings

ROOT = Path(__file__).resolve().parents[1]
OUTPUT, RUNS = "results/attacks", "runs/attacks"
SEEDS = (0, 1, 2)
NUMBERS = dict(num_7=1000, num_2=150, num_3=150, num_4=150, num_5=150, num_test=100, duplicate=True, max_ctx=110)
CASES: dict[str, tuple[dict, dict, dict]] = {  # data, model, training
    "noise": (NUMBERS | dict(num_noise=90), dict(n_layers=2, n_embd=64), dict(epochs=8, lr=3e-3, lr_decay=0.4)),
    "backdoor": (NUMBERS | dict(artifact="backdoor"), dict(n_layers=2, n_embd=64), dict(epochs=6, lr=3e-3, lr_decay=0.4)),
    "text": (
        dict(data_name="wiki", corpus="builtin", train_tokenizer=True, vocab_size=1024, num_chunks=1500, num_test=200,
             artifact="natural", num_noise=60, max_ctx=110),
        dict(n_layers=2, n_embd=64), dict(epochs=3, lr=3e-3),
    ),
}  # fmt: skip
TASK = TaskSettings(holdout_fraction=0.3, validation_fraction=0.2)
CAPPED = {"unlearn_loss_cap": 3.0}  # BalancedSubnet also runs with its cap, as a method of its own
LIMITS = dict(mean_test_accuracy=0.01, perplexity=1.1)  # largest fall, and largest factor
SPLIT = "shown"  # what the method was told to forget, without what an attacker has seen
NOTES = """\
- before: sequences that come out without an attack, of those that the method was told to forget (shown); held out: of
  those that it never saw.
- excess: by how many points of % the worst attack (but `interpolate`, whose attacker has the original) brings back more from the edited model than the same attack with the
  same budget from the never-planted twin. 0: nothing that was not there for anybody.
- Each attack: what it brings back at the setting that brings back most; what the attacker has seen is not measured. `relearn_all` trains
  on all sequences that are measured: only its excess counts.
- Mean over seeds, and half of the 95 % interval (Student's t).
- Settings were chosen on validation sequences of the first seed alone, which are in none of these figures.
"""


@dataclass(frozen=True)
class Trial:
    """A method with all its settings but the strength, on one model."""

    method: Method
    hp: Any

    @property
    def name(self) -> str:
        """The method's name; with its cap BalancedSubnet is a method of its own."""
        cap = getattr(self.hp, "unlearn_loss_cap", None)
        return f"{self.method.name} with cap" if cap else self.method.name

    def job(self, checkpoint: Checkpoint, folder: Path, common: Common) -> Job:
        """Return the job of the method at its strengths on a model."""
        (job,) = localize_jobs(checkpoint, [(self.method, self.hp)], TASK, common, folder)
        return job


@dataclass(frozen=True)
class Pair:
    """A planted model and its never-planted twin, and the folder of the records on them."""

    settings: RunSettings
    folder: Path

    @property
    def checkpoint(self) -> Checkpoint:
        epochs = self.settings.training.epochs
        return Checkpoint(self.folder / "planted" / f"epoch_{epochs}", self.settings, epochs)

    @property
    def twin(self) -> Path:
        """The twin's checkpoint."""
        return self.folder / "twin" / self.checkpoint.path.name

    @property
    def records(self) -> Path:
        return self.folder / "unlearned"

    def train(self, common: Common) -> None:
        """Train both models; what is finished is left as it is."""
        for settings, place in ((self.settings, self.checkpoint.path), (twin_settings(self.settings), self.twin)):
            start(training_words(settings, place.parent, common.words))


def start(words: Sequence[object]) -> None:
    """Run a command whose script is given relative to the repository, from any folder."""
    script, *flags = words
    cli.run_script([ROOT / str(script), *flags])


def parse() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="METHOD", help="default: all")
    parser.add_argument("--attacks", nargs="+", default=["all"], metavar="ATTACK", help="default: all")
    parser.add_argument(
        "--seeds", nargs="+", type=cli.not_negative, default=list(SEEDS), metavar="S", help="default: 0 1 2"
    )
    parser.add_argument("--report", action="store_true", help="run nothing: tables and figures from the records")
    parser.add_argument("--output_dir", default=OUTPUT, help=f"bundles and report (default: {OUTPUT})")
    parser.add_argument("--run_dir", default=RUNS, help=f"models and records (default: {RUNS})")
    parser.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    return parser.parse_args()


def pair_of(case: str, seed: int, run_dir: Path) -> Pair:
    data, model, training = CASES[case]
    training = dict(checkpoint_every=training["epochs"], batch_size=32, dtype="float32") | training
    settings = RunSettings(DataSettings(**data, seed=seed), ModelSettings(**model), TrainingSettings(**training))
    return Pair(settings, run_dir / case / f"seed{seed}")


def trials(methods: Sequence[Method]) -> list[Trial]:
    """Return every combination of the methods' small grids."""
    grids = {method.name: grid_of(method, SMALL) for method in methods}
    found = [Trial(*pair) for pair in hyper_parameters(grids, methods)]
    capped = [replace(t, hp=replace(t.hp, **CAPPED)) for t in found if hasattr(t.hp, "unlearn_loss_cap")]
    return list(dict.fromkeys([*found, *capped]))


def run_case(case: str, methods: Sequence[Method], arguments: argparse.Namespace) -> None:
    """Train, choose on the first seed, attack on every seed, and write the bundle of what was chosen."""
    common, kept = Common.of(arguments), []
    pairs = [pair_of(case, seed, Path(arguments.run_dir)) for seed in arguments.seeds]
    chosen: list[Trial] = []
    for pair in pairs:
        pair.train(common)
        twin = ["--twin_model", pair.twin]
        if not chosen:
            tried = trials(methods)
            for trial in tried:
                job = trial.job(pair.checkpoint, pair.records, common)
                start([*job.command(list(job.values)), *twin])
            chosen = choose(tried, pair, common)
        for trial in chosen:
            job = trial.job(pair.checkpoint, pair.records, common)
            start([*job.command(list(job.values)), *twin, "--attack", *arguments.attacks])
        kept += of_chosen(chosen, pair, common)
        write_bundle(Path(arguments.output_dir) / case, kept)


def choose(tried: Sequence[Trial], pair: Pair, common: Common) -> list[Trial]:
    """Return each method once, at the settings that leave least of the validation sequences within the limits.

    A method that is nowhere within them is returned where it costs least.
    """
    records = {run_key(record): record for record in load_records(pair.records)}
    (before,) = (record for record in records.values() if record["kind"] == UNEDITED)
    best: dict[str, tuple[tuple, Trial]] = {}
    for trial in tried:
        job = trial.job(pair.checkpoint, pair.records, common)
        for value in job.values:
            if record := records.get(run_key(job.record_identity(value))):
                left, loss = record["results"]["percent_memorized_validation"], damage(record, before)
                rank = (loss > 1, left if loss <= 1 else loss, loss)
                if trial.name not in best or rank < best[trial.name][0]:
                    best[trial.name] = rank, replace(trial, hp=trial.method.at(trial.hp, value))
    return [trial for _, trial in best.values()]


def damage(record: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    """Return what a run has cost in quality, relative to the limit: above 1 it is over it."""
    now, then = record["results"], before["results"]
    if on_numbers(flat_row(record)):
        return (then["mean_test_accuracy"] - now["mean_test_accuracy"]) / LIMITS["mean_test_accuracy"]
    return (now["perplexity"] / then["perplexity"] - 1) / (LIMITS["perplexity"] - 1)


def of_chosen(chosen: Sequence[Trial], pair: Pair, common: Common) -> Iterator[dict[str, Any]]:
    """Yield the records of the unedited model, its twin, the chosen runs, and the attacks on them."""
    records = load_records(pair.records)
    wanted = {
        run_key(job.record_identity(value))
        for trial in chosen
        for job in [trial.job(pair.checkpoint, pair.records, common)]
        for value in job.values
    }
    kept = [r for r in records if r["kind"] in (UNEDITED, NEVER_PLANTED) or run_key(r) in wanted]
    digests = {record_digest(record) for record in kept}
    yield from kept
    yield from (record for record in records if record.get("attack") and record["parent"] in digests)


def seeds_of(bundle: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the records of a bundle by seed."""
    found: dict[int, list] = {}
    for record in read_bundle(bundle):
        found.setdefault(record["data"]["seed"], []).append(record)
    return dict(sorted(found.items()))


def report(output: Path) -> list[dict[str, Any]]:
    """Write tables and figures from the bundles alone. Return the rows of all cases."""
    cases = [case for case in CASES if (output / case / NAME).exists()]
    if not cases:
        raise UserError(f"{output}: no {NAME} of any case; run without --report first")
    parts, rows = [], []
    for case in cases:
        seeds = seeds_of(output / case / NAME)
        models: dict[str, list[tuple[int, Attacked]]] = {}
        for seed, records in seeds.items():
            for model in attacked_models(records, SPLIT)[1]:
                models.setdefault(name_of(model), []).append((seed, model))
        own = [row_of(case, name, some, models) for name, some in models.items()]
        rows += own
        draw(case, {name: averaged([model for _, model in some]) for name, some in models.items()}, output)
        made = ", ".join(sorted({versions(record) for records in seeds.values() for record in records}))
        parts += [f"## {case}\n\nSeeds {', '.join(map(str, seeds))}; {made}.\n\n{table(own)}\n"]
    text = (
        "# Attacks: is it gone, or only hidden?\n\nMade by `python experiments/attacks.py --report` from the records.\n"
    )
    content = "\n".join([text, *parts, NOTES])
    files.write_file(output / "ATTACKS.md", lambda path: path.write_text(content, encoding="utf-8"))
    write_csv(output / "attacks.csv", rows)
    return rows


def name_of(model: Attacked) -> str:
    """Return the model's name in the table: its kind, or its method with the settings that make it one of its own."""
    if model.record["kind"] != UNLEARN:
        return model.record["kind"]
    settings = model.record["method"]
    return f"{settings['name']} with cap" if settings.get("unlearn_loss_cap") else settings["name"]


def row_of(case: str, name: str, some: Sequence[tuple[int, Attacked]], models: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's means over seeds, and half the width of their 95 % intervals."""
    twins = dict(models.get(NEVER_PLANTED, []))
    found: dict[str, list[float]] = {}
    for seed, model in some:
        worst = model.worst_excess(twins.get(seed)) if name != NEVER_PLANTED else None
        values = {"before": model.before, "held_out": model.record["results"].get("percent_memorized_held_out")}
        values |= {name: model.record["results"].get(name) for name in LIMITS}
        values |= {"excess": worst[0] if worst else None}
        values |= {curve.attack: curve.worst for curve in model.curves}
        values |= {f"area_{curve.attack}": curve.area for curve in model.curves}
        for key, value in values.items():
            found.setdefault(key, []).extend([] if value is None else [value])
    _, first = some[0]
    strength = strength_of(first.record)
    setting = name.replace("_", " ") + (f", {strength[0]} {strength[1]:g}" if strength else "")
    row: dict[str, Any] = {"case": case, "model": name, "setting": setting, "seeds": len(some)}
    for key, numbers in found.items():
        row[key], row[f"{key}_ci95"] = mean_and_interval(numbers) if numbers else (None, None)
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of a case, the least excess first, between the twin and the unedited model."""
    ends = {NEVER_PLANTED: -1e9, UNEDITED: 1e9}
    ranked = sorted(rows, key=lambda row: ends.get(row["model"], row.get("excess") or 0.0))
    quality = [name for name in LIMITS if any(row.get(name) is not None for row in rows)][:1]
    names = ["before", "held_out", *quality, "excess", *(name for name in ATTACKS if any(name in row for row in rows))]

    def cell(row: Mapping[str, Any], name: str) -> str:
        value, half = row.get(name), row.get(f"{name}_ci95")
        digits = 4 if name == "mean_test_accuracy" else 1
        return "-" if value is None else f"{value:.{digits}f}" + (f" ± {half:.{digits}f}" if half else "")

    lines = [[row["setting"], *(cell(row, name) for name in names)] for row in ranked]
    return markdown(["model", *(name.replace("_", " ") for name in names)], lines, numbers=True)


def draw(case: str, models: Mapping[str, Attacked], output: Path) -> None:
    """Draw one figure per method: the mean curves over seeds, with the twin and the unedited model as bounds."""
    bounds = [model for name, model in models.items() if name in (UNEDITED, NEVER_PLANTED)]
    for name, model in models.items():
        if model not in bounds and twin_of(bounds):
            path = output / case / name.replace(" ", "_")
            plots.save_figure(plots.draw_recovery(SPLIT, model, bounds), path)


def main() -> None:
    arguments = parse()
    output = files.writable_folder(arguments.output_dir)
    if not arguments.report:
        methods = find_methods(arguments.methods)
        for case in arguments.cases:
            run_case(case, methods, arguments)
    rows = report(output)
    shown = ("case", "setting", "before", "excess", "excess_ci95", "relearn", "quantize")
    print("\n" + cli.table([{name: row.get(name) for name in shown} for row in rows]))
    print(f"\ntables and figures: {output}")


if __name__ == "__main__":
    cli.run(main)
