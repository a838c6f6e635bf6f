"""The demo on text: the more often a passage is repeated, the sooner it is memorized; then it is unlearned.

    python experiments/demo_text.py

The text is plays and presidential addresses from installed packages, so no network is needed. 32 passages occur
unchanged 1, 10, 100 or 1000 times in the training set. Runs the ordinary scripts, whose commands it prints, and writes
results/demo_text/: summary.json, demo_text.png, demo_text.pdf, and page.html and page.png with what the models write.
An interrupted run can resume.

The never-planted twin, trained on other passages instead, comes with the repository. Unlearning uses
--unlearn_loss_cap, which the study lacks, a little above the loss of unseen text, so that nothing is over-forgotten.
"""

from tinymem import cli

# isort: split
from pathlib import Path
from typing import Any

from demo_common import (
    MEASURED,
    STATES,
    continuation,
    draw_bars,
    keep_page,
    records_of,
    run,
    spent_before,
    start_at_root,
    stopwatch,
)

from tinymem import files, plots
from tinymem.data.build import load_dataset
from tinymem.data.decode import decoder
from tinymem.metrics.memorization import memorized
from tinymem.models.tinymem import load_model
from tinymem.plots.base import common_legend
from tinymem.training.checkpoint import load_details
from tinymem.training.settings import RunSettings

RUN = Path("runs/demo_text")
EPOCHS = 4
TWIN = Path("results/models/text_natural_2layers_twin")  # same settings, order and seed; other passages
UNLEARNED = RUN / "demo_unlearned"  # separate from the user's runs on this model
TRAIN = f"""memorization_in_toy_models.py --data_name wiki --corpus builtin --train_tokenizer --vocab_size 2048
    --num_chunks 4000 --num_test 300 --artifact natural --num_noise 32 --n_layers 2 --batch_size 32 --epochs {EPOCHS}
    --checkpoint_every 1 --dtype auto --output_dir {RUN} --plot"""
UNLEARN = f"""src/localize/localize_memorization.py --model_path {RUN}/epoch_{EPOCHS}
    --localization_method balanced_subnet --ratio 0.1 --epochs 3 --unlearn_loss_cap 5.0 --twin_model {TWIN}
    {MEASURED} --page --output_dir {UNLEARNED}"""
REPEATS = ("1", "10", "100", "1000")
BY_REPEATS = {repeats: f"percent_memorized_dup_{repeats}" for repeats in REPEATS}
METRICS = {  # metric -> its name in the figure
    "percent_memorized_train": "memorized",
    "percent_near_verbatim_train": "near-\nverbatim",
    "percent_extractable_train": "(100, 0.5)\nextractable",
    "auc_loss_train": "AUC x 100\n(chance: 50)",
}


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--output_dir", default="results/demo_text", help="default: results/demo_text")
    output = start_at_root(parser.parse_args().output_dir)
    seconds = stopwatch(spent_before(RUN, UNLEARNED))
    run(TRAIN)
    run(UNLEARN)
    records = records_of(UNLEARNED, RUN / f"epoch_{EPOCHS}", "balanced_subnet", 0.1, epochs=3, unlearn_loss_cap=5.0)
    names = (*BY_REPEATS.values(), *METRICS, "perplexity")
    edited = UNLEARNED / records["after"]["results"]["model_folder"]
    summary = {
        **{state: {name: record["results"][name] for name in names} for state, record in records.items()},
        "passage": example(load_model(RUN / f"epoch_{EPOCHS}"), load_model(edited), load_model(TWIN)),
        "seconds_total": seconds(),
    }
    draw(summary, files.read_json(RUN / "metrics.json"), output / "demo_text")
    keep_page(UNLEARNED, records["after"], output)
    files.write_json(output / "summary.json", summary)
    print("\n" + "\n".join(f"{name:<20} {text}" for name, text in summary["passage"].items()) + "\n")
    print(cli.table(cli.brief({"": state, **summary[state]}) for state in STATES))
    print(f"\n{summary['seconds_total']} s in all; figure, page and summary: {output}")


def example(before, after, twin) -> dict[str, str]:
    """Return how all three models continue one of the most repeated passages, as text."""
    settings = RunSettings.from_flat(load_details(RUN / f"epoch_{EPOCHS}")["settings"]).data
    dataset = load_dataset(settings)
    artifacts, measured = dataset.artifacts, dict(ignored_token=dataset.ignored_token)
    known, kept = (memorized(model, artifacts, dataset.continuation, **measured) for model in (before, after))
    index = int((artifacts.group + 10 * known - 5 * kept).argmax())  # repeated often, memorized, then unlearned
    end, decode = int(artifacts.prompt_end[index]), decoder(settings, "data")
    window, prompt = slice(end, end + dataset.continuation), artifacts.clean[index, :end]
    return {
        "prompt": decode(prompt),
        "the passage goes on": decode(artifacts.planted[index, window]),
        "before unlearning": decode(continuation(before, prompt, dataset.continuation)),
        "after unlearning": decode(continuation(after, prompt, dataset.continuation)),
        "never planted": decode(continuation(twin, prompt, dataset.continuation)),
    }


def draw(summary: dict[str, Any], rows: plots.Rows, path: Path) -> None:
    """Draw memorization against epochs, a line per number of repeats, and bars before, after and for the twin."""
    figure, (training, repeats, metrics) = plots.new_figure(3, 4.3, 3.4)
    epochs = [row["epoch"] for row in rows]
    for (number, name), (marker, line) in zip(BY_REPEATS.items(), plots.STYLES):
        heights = [row[name] for row in rows]
        training.plot(epochs, heights, marker=marker, linestyle=line, color="black", label=f"repeated {number} x")
    training.set(xlabel="epoch", ylabel="passages memorized (%)", ylim=(-4, 104), xticks=epochs, title="training")
    training.legend(fontsize=7, loc="center left")
    heights = {state: [summary[state][name] for name in BY_REPEATS.values()] for state in STATES}
    draw_bars(repeats, heights, {state: state for state in STATES}, REPEATS)
    repeats.set(xlabel="repeats in the training set", title="passages memorized (%)")
    heights = {
        state: [summary[state][name] * (100 if name.startswith("auc") else 1) for name in METRICS] for state in STATES
    }
    labels = {state: f"{state} (perplexity {summary[state]['perplexity']:.1f})" for state in STATES}
    draw_bars(metrics, heights, labels, list(METRICS.values()))
    metrics.set(title="all passages (%)")
    common_legend(figure, [metrics])
    plots.save_figure(figure, path)


if __name__ == "__main__":
    cli.run(main)
