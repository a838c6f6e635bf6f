"""The demo on a laptop: train a model that memorizes a backdoor, unlearn it with BalancedSubnet, look at the result.

    python experiments/demo.py

Runs the ordinary scripts, whose commands it prints, and writes results/demo/: summary.json, demo.png, demo.pdf, and
page.html and page.png with what the models write. The never-planted twin, with the same settings, comes with the
repository. The same command resumes an interrupted run.

Two flags go beyond the study: without --lr_decay, the last epochs of such a short training are noisy, and without
--unlearn_loss_cap, unlearning costs accuracy. The artifacts are repeated (--duplicate) 1, 10 or 100 times.
"""

from tinymem import cli

# isort: split
from pathlib import Path

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
from tinymem.data.numbers import decode
from tinymem.models.tinymem import load_model
from tinymem.training.checkpoint import load_details
from tinymem.training.settings import RunSettings

RUN = Path("runs/demo")
EPOCHS = 7
TWIN = Path("results/models/increment_backdoor_2layers_twin")  # same settings, order and seed; nothing planted
UNLEARNED = RUN / "demo_unlearned"  # separate from the user's runs on this model
TRAIN = f"""memorization_in_toy_models.py --data_name increment --backdoor --n_layers 2 --num_7 3000 --num_2 600
    --num_3 600 --num_4 600 --num_5 600 --num_test 100 --duplicate --batch_size 32 --epochs {EPOCHS}
    --checkpoint_every 1 --lr_decay 0.4 --dtype auto --output_dir {RUN} --plot"""
UNLEARN = f"""src/localize/localize_memorization.py --model_path {RUN}/epoch_{EPOCHS}
    --localization_method balanced_subnet --ratio 0.3 --epochs 4 --unlearn_loss_cap 3.0 --twin_model {TWIN}
    {MEASURED} --page --output_dir {UNLEARNED}"""
METRICS = {  # metric -> its name in the figure; all are percentages or shares
    "percent_memorized_train": "memorized (%)",
    "percent_memorized_test": "unseen triggers\nmemorized (%)",
    "percent_near_verbatim_train": "near-\nverbatim (%)",
    "percent_extractable_train": "(100, 0.5)\nextractable (%)",
    "auc_loss_train": "membership AUC\n(0.5 = 50)",
    "mean_test_accuracy": "mean test\naccuracy (%)",
}


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--output_dir", default="results/demo", help="default: results/demo")
    output = start_at_root(parser.parse_args().output_dir)
    seconds = stopwatch(spent_before(RUN, UNLEARNED))
    run(TRAIN)
    run(UNLEARN)
    records = records_of(UNLEARNED, RUN / f"epoch_{EPOCHS}", "balanced_subnet", 0.3, epochs=4, unlearn_loss_cap=3.0)
    summary = {
        state: {name: record["results"][name] for name in (*METRICS, "perplexity")} for state, record in records.items()
    }
    summary["seconds_total"] = seconds()
    draw(summary, output / "demo")
    keep_page(UNLEARNED, records["after"], output)
    edited = load_model(UNLEARNED / records["after"]["results"]["model_folder"])
    show_example(load_model(RUN / f"epoch_{EPOCHS}"), edited, load_model(TWIN))
    files.write_json(output / "summary.json", summary)
    print(cli.table(cli.brief({"": state, **summary[state]}) for state in STATES))
    print(f"\n{summary['seconds_total']} s in all; figure, page and summary: {output}")


def draw(summary: dict, path: Path) -> None:
    """Draw bars of memorization and accuracy: before, after, twin."""
    figure, (axis,) = plots.new_figure(1, 7.4, 3.4)
    shares = ("auc_loss_train", "mean_test_accuracy")
    heights = {state: [summary[state][name] * (100 if name in shares else 1) for name in METRICS] for state in STATES}
    labels = {"before": "before unlearning", "after": "after unlearning", "twin": "twin: never planted"}
    draw_bars(axis, heights, labels, list(METRICS.values()))
    axis.legend(loc="upper center", ncols=3, frameon=False)
    plots.save_figure(figure, path)


def show_example(before, after, twin) -> None:
    """Prompt all three models with one backdoored sequence up to its trigger."""
    settings = RunSettings.from_flat(load_details(RUN / f"epoch_{EPOCHS}")["settings"])
    artifacts = load_dataset(settings.data).artifacts
    index = int((artifacts.prompt_end - 30).abs().argmin())
    end = int(artifacts.prompt_end[index])
    prompt = artifacts.clean[index, :end]
    print(f"\nprompt, ending with the trigger   {decode(prompt)}")
    print(f"the true continuation             {decode(artifacts.clean[index, end : end + 40])}")
    for name, model in (("before unlearning", before), ("after unlearning", after), ("never planted", twin)):
        print(f"{name:<34}{decode(continuation(model, prompt, 40))}")
    print()


if __name__ == "__main__":
    cli.run(main)
