"""The same story on text: the more often a passage is repeated, the sooner it is memorized; then it is unlearned.

    python experiments/demo_text.py

Plays and presidential addresses from installed packages, no network. 32 passages stand 1, 10, 100 or 1000 times in
the training set, unchanged. Runs the ordinary scripts, whose commands it prints, and writes results/demo_text/:
summary.json, demo_text.png, demo_text.pdf. An interrupted run can resume. The unlearning uses
--unlearn_loss_cap, which the study does not have, a little above the loss of unseen text: more than forgotten is not
asked for.
"""

from tinymem import cli

# isort: split
from pathlib import Path
from typing import Any

from demo_common import before_and_after, continuation, run, spent_before, start_at_root, stopwatch

from tinymem import files, plots
from tinymem.data.build import load_dataset
from tinymem.data.decode import decoder
from tinymem.metrics.memorization import memorized
from tinymem.models.tinymem import load_model
from tinymem.training.checkpoint import load_details
from tinymem.training.settings import RunSettings

RUN = Path("runs/demo_text")
EPOCHS = 4
UNLEARNED = RUN / "demo_unlearned"  # a folder of its own: the user's runs on this model go elsewhere
TRAIN = f"""memorization_in_toy_models.py --data_name wiki --corpus builtin --train_tokenizer --vocab_size 2048
    --num_chunks 4000 --num_test 300 --artifact natural --num_noise 32 --n_layers 2 --batch_size 32 --epochs {EPOCHS}
    --checkpoint_every 1 --dtype auto --output_dir {RUN} --plot"""
UNLEARN = f"""src/localize/localize_memorization.py --model_path {RUN}/epoch_{EPOCHS}
    --localization_method balanced_subnet --ratio 0.1 --epochs 3 --unlearn_loss_cap 5.0 --output_dir {UNLEARNED}"""
REPEATS = ("1", "10", "100", "1000")
STATES = ("before", "after")


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--output_dir", default="results/demo_text", help="default: results/demo_text")
    output = start_at_root(parser.parse_args().output_dir)
    seconds = stopwatch(spent_before(RUN, UNLEARNED))
    run(TRAIN)
    run(UNLEARN)
    results = before_and_after(
        UNLEARNED, RUN / f"epoch_{EPOCHS}", "balanced_subnet", 0.1, epochs=3, unlearn_loss_cap=5.0
    )
    summary = {
        "percent_memorized_by_duplication": {state: by_duplication(results[state]) for state in STATES},
        "percent_memorized": {state: results[state]["percent_memorized_train"] for state in STATES},
        "test_perplexity": {state: results[state]["perplexity"] for state in STATES},
        "passage": example(
            load_model(RUN / f"epoch_{EPOCHS}"), load_model(UNLEARNED / results["after"]["model_folder"])
        ),
        "seconds_total": seconds(),
    }
    draw(summary, files.read_json(RUN / "metrics.json"), output / "demo_text")
    files.write_json(output / "summary.json", summary)
    show(summary)
    print(f"\n{summary['seconds_total']} s in all; figure and summary: {output}")


def by_duplication(row: dict[str, Any]) -> dict[str, float]:
    """Repeats of a passage in the training set -> percent memorized."""
    return {repeats: row[f"percent_memorized_dup_{repeats}"] for repeats in REPEATS}


def example(before, after) -> dict[str, str]:
    """One of the passages repeated most: how both models continue it, as text."""
    settings = RunSettings.from_flat(load_details(RUN / f"epoch_{EPOCHS}")["settings"]).data
    dataset = load_dataset(settings)
    artifacts, measured = dataset.artifacts, dict(ignored_token=dataset.ignored_token)
    known, kept = (memorized(model, artifacts, dataset.continuation, **measured) for model in (before, after))
    index = int((artifacts.group + 10 * known - 5 * kept).argmax())  # best: repeated often, memorized, then unlearned
    end, decode = int(artifacts.prompt_end[index]), decoder(settings, "data")
    window, prompt = slice(end, end + dataset.continuation), artifacts.clean[index, :end]
    return {
        "prompt": decode(prompt),
        "the passage goes on": decode(artifacts.planted[index, window]),
        "before unlearning": decode(continuation(before, prompt, dataset.continuation)),
        "after unlearning": decode(continuation(after, prompt, dataset.continuation)),
    }


def draw(summary: dict[str, Any], rows: plots.Rows, path: Path) -> None:
    """Memorization against epochs, a line a number of repeats; and bars before and after unlearning."""
    figure, (training, unlearning) = plots.new_figure(2, 4.6, 3.4)
    epochs = [row["epoch"] for row in rows]
    for repeats, (marker, line) in zip(REPEATS, plots.STYLES):
        heights = [row[f"percent_memorized_dup_{repeats}"] for row in rows]
        training.plot(epochs, heights, marker=marker, linestyle=line, color="black", label=f"repeated {repeats} x")
    training.set(xlabel="epoch", ylabel="passages memorized (%)", ylim=(-4, 104), xticks=epochs, title="training")
    training.legend(fontsize=7, loc="center left")
    for shift, state, colour, hatch in ((-0.2, "before", "0.35", ""), (0.2, "after", "0.8", "//")):
        heights = list(summary["percent_memorized_by_duplication"][state].values())
        places = [place + shift for place in range(len(REPEATS))]
        label = f"{state} (test perplexity {summary['test_perplexity'][state]:.1f})"
        bars = unlearning.bar(places, heights, 0.38, color=colour, hatch=hatch, edgecolor="black", label=label)
        unlearning.bar_label(bars, [f"{height:.0f}" for height in heights], fontsize=8)
    unlearning.set_xticks(range(len(REPEATS)), REPEATS)
    unlearning.set(xlabel="repeats in the training set", ylim=(0, 128), yticks=range(0, 101, 20), title="unlearning")
    unlearning.legend(fontsize=7, loc="upper center", ncols=2, frameon=False)
    plots.save_figure(figure, path)


def show(summary: dict[str, Any]) -> None:
    """Return the passage, and a table of percent memorized per number of repeats."""
    print("\n" + "\n".join(f"{name:<20} {text}" for name, text in summary["passage"].items()) + "\n")
    groups = summary["percent_memorized_by_duplication"]
    rows = [
        {
            "% memorized": state,
            **{f"{repeats} x": percent for repeats, percent in groups[state].items()},
            "all": summary["percent_memorized"][state],
            "test perplexity": summary["test_perplexity"][state],
        }
        for state in STATES
    ]
    print(cli.table(rows))


if __name__ == "__main__":
    cli.run(main)
