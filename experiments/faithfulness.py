"""Test which metrics can be trusted: how well each tells planted models from never-planted ones.

    python experiments/faithfulness.py               five planted models and their twins, about 20 minutes on one core
    python experiments/faithfulness.py --report      only the table and the figure, from the records that are there

For each seed, it trains a model with planted noise and its never-planted twin, and measures both on the seed's planted
sequences. Metrics that need a never-planted reference use the same one for all models, trained with another seed. It
writes results/faithfulness/: records/, FAITHFULNESS.md, faithfulness.csv, faithfulness.png, faithfulness.pdf.
Runs the ordinary training script, whose commands it prints. When started again, it does only what is missing.
The flags of data, model and training below apply to all models and override this script's defaults.
"""

from tinymem import cli

# isort: split
import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from tinymem import files, plots
from tinymem.data.build import load_dataset
from tinymem.data.settings import TEXT_FIELDS, DataSettings
from tinymem.errors import UserError
from tinymem.metrics import faithfulness as judging
from tinymem.metrics.evaluate import measure
from tinymem.metrics.reference import References
from tinymem.models.tinymem import ModelSettings, load_model
from tinymem.options import field_types
from tinymem.records.cost import measured
from tinymem.records.identity import MEASURED, TRAIN, record_digest, sections_of
from tinymem.records.record import find_record, read_record, read_values, record_path, write_record
from tinymem.records.table import find_records, load_records, markdown, versions, write_csv
from tinymem.sweeps.jobs import training_words
from tinymem.training.settings import RunSettings, TrainingSettings
from tinymem.training.twin import twin_of

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = "results/faithfulness"
SEEDS = (0, 1, 2, 3, 4)
REFERENCE_SEED = 1000  # of the never-planted model that loss_over_twin and auc_twin use for all models
PLANTED, TWIN = "planted", "twin"
QUALITY = "mean_test_accuracy"  # also measured: both sides must have learned the task equally well
# A third of the noise occurs once, a third 10 times, a third 100 times, so that it is known to different degrees.
DEFAULTS = dict(num_7=1000, num_2=150, num_3=150, num_4=150, num_5=150, num_test=100, num_noise=90, duplicate=True)
DEFAULTS |= dict(max_ctx=110, n_layers=2, n_embd=64, n_heads=4, dtype="float32")
DEFAULTS |= dict(epochs=8, checkpoint_every=8, batch_size=32, lr=3e-3, lr_decay=0.4)
FIXED = ("seed", "twin", *TEXT_FIELDS)  # data settings that are not flags here
NOTES = """\
- AUC, models: the probability that a planted model shows more knowledge than a never-planted one, over all pairs of
  models (ties 1/2; Mann-Whitney). 1: tells all apart; 0.5: chance; below: misleads.
- AUC, sequences: the same for single sequences: the planted sequences of a seed in its planted model against the same
  sequences in its twin. This is the harder test. Mean over seeds, and the worst seed.
- known when: the direction of the metric if a model knows a sequence. It follows from the metric's meaning and was
  fixed before any result.
- planted, twins: mean of the metric over the models. inf: no number of samples is enough. - : no value.
- `loss_over_twin`, `loss_distance` and `auc_twin` use one never-planted model of another seed as the twin of all
  models, so that a twin, too, is some way from it.
"""


@dataclass(frozen=True)
class Model:
    """A model of the experiment: its settings and its folder."""

    settings: RunSettings
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The folder of its last epoch."""
        return self.folder / f"epoch_{self.settings.training.epochs}"

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the record of its measurement."""
        name = TWIN if self.settings.data.twin else PLANTED
        trained = record_digest({"kind": TRAIN, **self.settings.sections()})
        about = {"kind": MEASURED, "parent": trained, **self.settings.sections()}
        return {**about, "method": {"name": name, "reference_seed": REFERENCE_SEED}}


def parse() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--seeds", nargs="+", type=cli.not_negative, default=list(SEEDS), metavar="S",
        help="at least two seeds, each for a planted model and its twin (default: 0 1 2 3 4)",
    )  # fmt: skip
    parser.add_argument("--report", action="store_true", help="train nothing: write table and figure from all records")
    for part in (DataSettings, ModelSettings, TrainingSettings):
        group, types = parser.add_argument_group(part.__doc__.splitlines()[0]), field_types(part)
        for field in fields(part):
            if field.name not in FIXED:
                default = DEFAULTS.get(field.name, field.default)
                cli.add_flag(group, field, types[field.name], default)
    parser.add_argument("--output_dir", default=OUTPUT, help=f"records and report (default: {OUTPUT})")
    parser.add_argument(
        "--run_dir", default="runs/faithfulness", help="where models are kept (default: runs/faithfulness)"
    )
    parser.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    return parser.parse_args()


def chosen_settings(arguments: argparse.Namespace) -> RunSettings:
    """Return the settings of the planted model of seed 0. Raise UserError for text."""
    parts = (DataSettings, ModelSettings, TrainingSettings)
    defaults = ({f.name: DEFAULTS[f.name] for f in fields(part) if f.name in DEFAULTS} for part in parts)
    settings = RunSettings(*(cli.collect(part, arguments, **own) for part, own in zip(parts, defaults)))
    if settings.data.is_text:
        raise UserError(f"--data_name {settings.data.data_name}: this experiment is on number sequences")
    return settings


def model_of(settings: RunSettings, seed: int, twin: bool, run_dir: Path) -> Model:
    """Return the planted model of a seed, or its twin."""
    planted = replace(settings, data=replace(settings.data, seed=seed))
    return Model(twin_of(planted) if twin else planted, run_dir / f"seed{seed}{'_twin' * twin}")


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """Return the distinct seeds. Raise UserError for fewer than two, and for the reference's seed."""
    found = list(dict.fromkeys(seeds))
    if len(found) < 2:
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: an AUC over models takes at least 2 seeds")
    if REFERENCE_SEED in found:
        raise UserError(f"--seeds {REFERENCE_SEED}: that is the seed of the reference model; choose another one")
    return found


def compared(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind and settings that all records of the experiment share, without the seed and the side."""
    sides = ("data.seed", "data.twin", "method.name")
    sections = sections_of(record).items()
    settings = {f"{part}.{name}": value for part, values in sections for name, value in values.items()}
    return {"kind": record["kind"], **{name: value for name, value in settings.items() if name not in sides}}


def check_folder(output: Path, records: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> None:
    """Raise UserError if a record has settings other than those of `wanted`, an identity or a record."""
    own = compared(wanted)
    for found in map(compared, records):
        name = next((name for name in own | found if found.get(name) != own.get(name)), None)
        if name:
            raise UserError(
                f"{output}: holds records of other settings ({name} is {found.get(name)}, not {own.get(name)}); "
                "give another --output_dir"
            )


def train(model: Model, common: list[str]) -> None:
    """Train one model, unless it is finished."""
    script, *flags = training_words(model.settings, model.folder, common)
    cli.run_script([ROOT / script, *flags])


def measure_model(model: Model, reference: Model, data_dir: str, device: Any, output: Path) -> None:
    """Measure a model on the planted sequences of its seed, and write its record with the values of each sequence."""
    dataset = load_dataset(model.settings.data, data_dir)
    open_reference = partial(load_model, reference.checkpoint, device)
    with measured(device) as cost:
        found = measure(
            load_model(model.checkpoint, device),
            dataset,
            metrics=[QUALITY, *judging.judged()],
            references=References(dataset, dataset.sequences[:0], open_reference),
        )
    columns = {metric.column(judging.SPLIT) for metric in judging.judged()}
    values = {name: value for name, value in found.tensors().items() if name.partition(".")[0] in columns}
    write_record(output, model.identity, found.row, cost, str(device), values)


def do_everything(arguments: argparse.Namespace, settings: RunSettings, seeds: Sequence[int]) -> None:
    """Train and measure all models whose records are missing, the reference first."""
    output = files.writable_folder(arguments.output_dir)
    run_dir = files.writable_folder(arguments.run_dir, " with --run_dir")
    reference = model_of(settings, REFERENCE_SEED, True, run_dir)
    models = [model_of(settings, seed, twin, run_dir) for seed in seeds for twin in (False, True)]
    check_folder(output, load_records(output), models[0].identity)
    missing = [model for model in models if not find_record(output, model.identity)]
    device = cli.resolve_device(arguments.device)
    common = ["--device", arguments.device, "--data_dir", arguments.data_dir]
    for number, model in enumerate(missing):
        if number == 0:
            train(reference, common)
        train(model, common)
        measure_model(model, reference, arguments.data_dir, device, output)
        print(f"measured: {record_path(output, model.identity)}", flush=True)


def load_sides(output: Path) -> tuple[list[int], list[list[tuple[dict[str, Any], dict[str, Any]]]]]:
    """Return the seeds with both models, and (record, values) of the planted models and of the twins, in order.

    Raise UserError for fewer than two seeds, and for records with different settings.
    """
    found: dict[str, dict[int, Any]] = {PLANTED: {}, TWIN: {}}
    records = [(read_record(path), read_values(path)) for path in find_records(output)]
    check_folder(output, [record for record, _ in records], records[0][0] if records else {"kind": MEASURED})
    for record, values in records:
        name, seed = record.get("method", {}).get("name"), record.get("data", {}).get("seed")
        if record["kind"] == MEASURED and name in found:
            found[name][seed] = record, values
    seeds = sorted(found[PLANTED].keys() & found[TWIN].keys())
    if len(seeds) < 2:
        raise UserError(
            f"{output}: has both models of {len(seeds)} seeds, a report takes 2; run without --report first"
        )
    return seeds, [[found[name][seed] for seed in seeds] for name in (PLANTED, TWIN)]


def report(output: Path) -> list[dict[str, Any]]:
    """Write the table, text and figure from the folder's records. Return the table."""
    seeds, sides = load_sides(output)
    results = [[(record["results"], values) for record, values in side] for side in sides]
    rows = [judging.judge(metric, *results) for metric in judging.judged()]
    files.write_file(
        output / "FAITHFULNESS.md", lambda path: path.write_text(as_text(seeds, sides, rows), encoding="utf-8")
    )
    write_csv(output / "faithfulness.csv", rows)
    plots.plot_faithfulness(rows, output / "faithfulness")
    return rows


def as_text(seeds: Sequence[int], sides: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return FAITHFULNESS.md."""
    planted, twins = ([values for _, values in side] for side in sides)
    differences = judging.counterfactual_rows(planted, twins)
    differences = differences[~differences.isnan()]
    mean, share = differences.mean().item(), (differences > judging.KEPT).double().mean().item()
    right = [100 * sum(record["results"][QUALITY] for record, _ in side) / len(side) for side in sides]
    made = ", ".join(sorted({versions(record) for side in sides for record, _ in side}))
    shown = list(map(readable, rows))
    return "\n".join(
        (
            "# Faithfulness of the metrics\n",
            f"Made by `python experiments/faithfulness.py --report` from the records beside it: {len(seeds)} planted",
            f"models and their {len(seeds)} never-planted twins (seeds {', '.join(map(str, seeds))}); {made}.\n",
            markdown(list(shown[0]), (row.values() for row in shown)) + "\n",
            "![AUC of each metric](faithfulness.png)\n",
            f"- Mean test accuracy: planted {right[0]:.2f} %, twins {right[1]:.2f} %.",
            f"- Counterfactual memorization (`{judging.SCORE}` of a planted sequence in its planted model minus that "
            "in",
            f"  the twin), {len(differences)} sequences of all seeds: mean {mean:.3f}; {100 * share:.1f} % of them are",
            f"  above {judging.KEPT}.",
            NOTES,
        )
    )


def readable(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a line of the table as printed."""

    def number(name: str, form: str) -> str:
        return "-" if row[name] is None else format(row[name], form)

    return {
        "metric": row["metric"].removesuffix(f"_{judging.SPLIT}"),
        "known when": row["known_when"],
        "AUC, models": number("auc_models", ".2f"),
        "AUC, sequences": number("auc_rows", ".3f"),
        "worst seed": number("auc_rows_lowest", ".3f"),
        "planted": number("mean_planted", ".4g"),
        "twins": number("mean_twins", ".4g"),
        "unit": row["unit"],
    }


def main() -> None:
    arguments = parse()
    output = Path(arguments.output_dir)
    if not arguments.report:
        do_everything(arguments, chosen_settings(arguments), checked_seeds(arguments.seeds))
    rows = report(output)
    print("\n" + cli.table(map(readable, rows)))
    print(f"\ntable, text and figure: {output}")


if __name__ == "__main__":
    cli.run(main)
