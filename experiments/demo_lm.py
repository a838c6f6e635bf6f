"""The demo on a real language model: SmolLM2-135M learns to recite 64 passages, then fifteen methods unlearn them.

    python experiments/demo_lm.py

This needs no network: the model comes in a package (requirements-lm.txt), and the passages come from presidential
addresses. Runs the ordinary script, whose commands it prints, and writes results/demo_lm/: summary.json, demo_lm.png,
demo_lm.pdf, page.html and page.png with what the models write, and records/ with the table's records. An interrupted
run can resume; the planted model is stored in data/models.

The methods see half of the passages. Every method tries three strengths. A fifth of the passages chooses one strength;
the rest, held out, judge it. In the table, "unedited" is the model with planted passages, and "never_planted" is its
twin, the model before planting.
"""

from tinymem import cli

# isort: split
import shlex
import shutil
from pathlib import Path
from typing import Any

from demo_common import MEASURED, continuation, keep_page, run, start_at_root, stopwatch

from tinymem import files, plots
from tinymem.data.decode import printable
from tinymem.data.passages import PassageSettings, load_passages
from tinymem.data.production import ProductionSettings
from tinymem.leaderboard.cases import TASK
from tinymem.localize.registry import METHODS
from tinymem.localize.task import UnlearningTask, unlearning_task
from tinymem.metrics.memorization import memorized
from tinymem.models.precision import auto_precision
from tinymem.models.production import DTYPES, open_causal_lm
from tinymem.planning.duration import Clock, duration
from tinymem.records.choose import configurations, leading, unlearning_runs
from tinymem.records.identity import NEVER_PLANTED, PLANTED_MODEL, UNEDITED, UNLEARN, record_digest, sections_of
from tinymem.records.ranking_rows import PERPLEXITY_RISE
from tinymem.records.strength import strength_in
from tinymem.records.table import load_records, shown_row
from tinymem.training.checkpoint import load_details
from tinymem.training.plant import PlantSettings

SCRIPT = "src/localize/prod_grad.py"
MODELS = Path("data/models")
MICROBATCH = 32  # as in the batches below; takes 1 to 2 GB
RETAIN = 128  # rows that methods retain; planting has more, since repeated rows are themselves memorized
SETTINGS = (  # settings that differ from the script's defaults
    (PassageSettings, dict(plant="builtin", plant_sequences=64)),
    (ProductionSettings, dict(num_test=128, num_retain=1024)),
    (PlantSettings, {}),
)
BEST = "balanced_subnet"
# One command for methods that share flags. The ratios are far below the defaults, at which most methods would ruin this
# model, since a few of its weights matter a lot. The smallest ratios are one neuron per layer or one weight per matrix.
# The learning rates of objectives suit a model of this size. K-FAC's authors edit the input matrices of three MLPs, at
# three quarters of the depth.
COMMANDS = (
    f"--localization_method {BEST} --ratio 0.005 0.01 0.02 --lr 0.15 --batch_size 16 --unlearn_share 0.5 --epochs 3 "
    "--unlearn_loss_cap 1.5",
    "--localization_method subnet --ratio 0.003 0.01 0.03 --batch_size 32 --epochs 2 --no_save_model",
    "--localization_method activations --ratio 0.0007 0.0014 0.002 --no_save_model",
    "--localization_method durable durable_agg --ratio 1.2e-6 3e-6 1e-5 --no_save_model",
    "--localization_method slimming hard_concrete --ratio 0.0007 0.0014 0.002 --epochs 4 --no_save_model",
    "--localization_method greedy --ratio 3e-8 1e-7 2e-7 --greedy_k 5 --unlearn_share 0.5 --batch_size 32 "
    "--no_save_model",
    "--localization_method obs --ratio 1.2e-6 3e-6 1e-5 --num_grads 16 --block_size 10 --no_save_model",
    "--localization_method npo simnpo undial obliviate --steps 10 20 40 --batch_size 8 --lr 5e-5 --no_save_model",
    "--localization_method kfac --layers 21,22,23 --projections in --rho 0.6 0.8 0.95 --no_save_model",
    "--localization_method kfade --kl_budget 0.03 0.1 0.3 --no_save_model",
)
LEFT_OUT = ("zero_out", "integrated_gradients")  # at their defaults they would take days and hours
JUDGED = ("percent_memorized", "percent_near_verbatim", "percent_extractable", "auc_loss")
COLUMNS = (
    "method",
    "setting",
    *(f"{name}_{split}" for split in ("shown", "validation", "held_out") for name in JUDGED),
)
COLUMNS += ("perplexity", "seconds", "peak_memory_gb")


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--output_dir", default="results/demo_lm", help="default: results/demo_lm")
    parser.add_argument("--model_name", default="smollm2", help="as prod_grad.py takes it (default: smollm2)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: bfloat16, or float32 if the device "
                        "has no instructions for it)")  # fmt: skip
    for cls, defaults in SETTINGS:
        cli.add_options(parser, cls, **defaults)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    for name in ("model_name", "plant"):  # a path relative to the caller's folder
        if (value := getattr(arguments, name, None)) and Path(value).exists():
            setattr(arguments, name, str(Path(value).resolve()))
    settings = [cli.collect(cls, arguments, **defaults) for cls, defaults in SETTINGS]
    output = start_at_root(arguments.output_dir)
    dtype = arguments.dtype or auto_precision(cli.resolve_device("auto"))
    base = f"{SCRIPT} --model_name {shlex.quote(arguments.model_name)} --dtype {dtype} --max_retain {RETAIN}"
    base += f" --holdout_fraction {TASK.holdout_fraction} --validation_fraction {TASK.validation_fraction}"
    base += f" {MEASURED} --page"
    for cls, defaults in SETTINGS:
        given = {**defaults, **cli.given(cls, arguments)}
        base += "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given.items())
    # A folder for each set of commands, so that the table never mixes settings.
    folder = Path("runs") / f"demo_lm_{files.digest({'commands': [base, *COMMANDS]})[:8]}"
    planted_before = {path.name for path in MODELS.glob("planted_*")}
    seconds = stopwatch(sum(record["cost"]["seconds"] or 0 for record in load_records(folder)))
    for command in COMMANDS:
        run(f"{base} --microbatch {MICROBATCH} {command} --output_dir {folder}")
    records = in_order(load_records(folder))
    best = chosen(records)
    summary = summarize(records, best, settings[0], settings[1], folder)
    name = summary["settings"]["training"][PLANTED_MODEL]
    summary["seconds_total"] = round(seconds() + (planting_of(name)["seconds"] if name in planted_before else 0), 1)
    files.write_folder(output / "records", lambda temporary: copy_records(folder, temporary))
    keep_page(folder, best[BEST], output)
    files.write_json(output / "summary.json", summary)
    plots.plot_planted(summary["rows"], output / "demo_lm")
    show(summary)
    print(f"\n{summary['seconds_total']} s in all; figure, page, records and summary: {output}")


def row(record: dict[str, Any]) -> dict[str, Any]:
    """Return the table's row of a record; "setting" is its strength as text, such as "ratio 0.01"."""
    strength = strength_in(record.get("method", {}))
    values = {**shown_row(record), "setting": f"{strength[0]} {strength[1]:g}" if strength else None}
    return {name: values.get(name) for name in COLUMNS}


def planting_of(name: str) -> dict[str, Any]:
    """Return the epochs and seconds of a planted model."""
    return load_details(MODELS / name)["planting"]


def copy_records(folder: Path, target: Path) -> None:
    """Copy the records, so that the committed table can be checked against them."""
    for path in sorted((folder / "records").glob("*.json")):
        shutil.copy(path, target / path.name)


def in_order(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the model before planting, the planted one, then methods as registered, strengths ascending."""
    names = [NEVER_PLANTED, UNEDITED, *METHODS]
    ours = [record for record in records if record["kind"] in (NEVER_PLANTED, UNEDITED, UNLEARN)]

    def place(record: dict[str, Any]) -> tuple[int, float]:
        strength = strength_in(record.get("method", {}))
        return names.index(shown_row(record)["method"]), strength[1] if strength else 0.0

    return sorted(ours, key=place)


def chosen(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each method's run that leaves the fewest validation passages memorized within the limit of perplexity.

    If no run is within the limit, return the one with the lowest perplexity.
    """
    named = {record_digest(record): record for record in records}
    runs = [one.runs[0] for one in leading(configurations(unlearning_runs(named.items())), PERPLEXITY_RISE)]
    return {run.method: named[run.row["record"]] for run in runs if run.method != UNEDITED}


def summarize(
    records: list[dict[str, Any]],
    best: dict[str, dict[str, Any]],
    passages: PassageSettings,
    data: ProductionSettings,
    folder: Path,
) -> dict[str, Any]:
    """Return summary.json without the total time. "planting" gives how many of all passages the models recite."""
    settings = sections_of(records[0])
    dtype, name = settings["model"]["dtype"], settings["training"][PLANTED_MODEL]
    planted, tokenizer = open_causal_lm(MODELS / name, dtype=dtype)
    dataset = load_passages(passages, data, planted.config, tokenizer).dataset
    task = unlearning_task(planted, dataset, TASK)
    models = {
        "never planted": open_causal_lm(settings["model"]["name"], dtype=dtype)[0],
        "planted": planted,
        "after unlearning": open_causal_lm(folder / best[BEST]["results"]["model_folder"], dtype=dtype)[0],
    }
    shown = [record for record in records if record["kind"] != UNLEARN or record in best.values()]
    return {
        "rows": [row(record) for record in shown],
        "trials": [row(record) for record in records if record not in shown],
        "left_out": {method: estimated_hours(method, planted, task) for method in LEFT_OUT},
        "passage": example(models, task, tokenizer),
        "planting": {
            **planting_of(name),
            **{r["kind"]: r["results"]["percent_memorized_train"] for r in records[:2]},
        },
        "settings": settings,
        "commands": list(COMMANDS),
    }


def estimated_hours(method: str, model, task: UnlearningTask) -> float:
    """Return how many hours the method would take on this machine."""
    return round(Clock(model, task).seconds(METHODS[method], METHODS[method].hyper_parameters()) / 3600, 1)


def example(models: dict[str, Any], task: UnlearningTask, tokenizer) -> dict[str, str]:
    """Return how each model continues the beginning of a passage that was shown to the method, as text."""
    kept = memorized(models["after unlearning"], task.forget, task.continuation, task.microbatch)
    index = int(kept.byte().argmin())  # a forgotten passage, if there is one
    tokens, end = task.forget.planted[index], int(task.forget.prompt_end[index])
    texts = {"prompt": tokens[:end], "the passage goes on": tokens[end : end + task.continuation]}
    texts |= {name: continuation(model, tokens[:end], task.continuation) for name, model in models.items()}
    return {name: printable(tokenizer.decode(text.tolist())) for name, text in texts.items()}


def show(summary: dict[str, Any]) -> None:
    """Print the passage, the table of chosen runs, the methods left out, and the result of BEST."""
    print("\n" + "\n".join(f"{name:<20} {text}" for name, text in summary["passage"].items()) + "\n")
    print(cli.table(map(cli.brief, summary["rows"])))
    for method, hours in summary["left_out"].items():
        print(f"\n{method}: left out, its scoring would take about {duration(3600 * hours)} on this machine")
    before, after = (next(r for r in summary["rows"] if r["method"] == name) for name in (UNEDITED, BEST))
    rise = 100 * (after["perplexity"] / before["perplexity"] - 1)
    print(
        f"{BEST}: {after['percent_memorized_shown']:.1f} % of the shown and "
        f"{after['percent_memorized_held_out']:.1f} % of the held-out passages are still memorized; "
        f"perplexity {rise:+.1f} %"
    )


if __name__ == "__main__":
    cli.run(main)
