"""The whole story on a laptop: train a model that memorizes a backdoor, unlearn it with BalancedSubnet, look.

    python experiments/demo.py

Runs the ordinary scripts, whose commands it prints, and writes results/demo/: summary.json, demo.png, demo.pdf.
An interrupted run resumes with the same command. Beyond the study are --lr_decay, without which the last epochs of so short a
training are noisy, and --unlearn_loss_cap, without which the unlearning costs accuracy. The artifacts are repeated
(--duplicate) 1, 10 or 100 times.
"""

from tinymem import cli

# isort: split
from pathlib import Path

from demo_common import before_and_after, continuation, run, spent_before, start_at_root, stopwatch

from tinymem import files, plots
from tinymem.data.build import load_dataset
from tinymem.data.numbers import decode
from tinymem.models.tinymem import load_model
from tinymem.training.checkpoint import load_details
from tinymem.training.settings import RunSettings

RUN = Path("runs/demo")
EPOCHS = 7
UNLEARNED = RUN / "demo_unlearned"  # a folder of its own: the user's runs on this model go elsewhere
TRAIN = f"""memorization_in_toy_models.py --data_name increment --backdoor --n_layers 2 --num_7 3000 --num_2 600
    --num_3 600 --num_4 600 --num_5 600 --num_test 100 --duplicate --batch_size 32 --epochs {EPOCHS}
    --checkpoint_every 1 --lr_decay 0.4 --dtype auto --output_dir {RUN} --plot"""
UNLEARN = f"""src/localize/localize_memorization.py --model_path {RUN}/epoch_{EPOCHS}
    --localization_method balanced_subnet --ratio 0.3 --epochs 4 --unlearn_loss_cap 3.0 --output_dir {UNLEARNED}"""
METRICS = ("percent_memorized_train", "percent_memorized_test", "mean_test_accuracy", "perplexity")
LABELS = ("backdoors memorized (%)", "unseen triggers memorized (%)", "mean test accuracy (%)")


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--output_dir", default="results/demo", help="default: results/demo")
    output = start_at_root(parser.parse_args().output_dir)
    seconds = stopwatch(spent_before(RUN, UNLEARNED))
    run(TRAIN)
    run(UNLEARN)
    results = before_and_after(
        UNLEARNED, RUN / f"epoch_{EPOCHS}", "balanced_subnet", 0.3, epochs=4, unlearn_loss_cap=3.0
    )
    summary = {state: {name: row[name] for name in METRICS} for state, row in results.items()}
    summary["seconds_total"] = seconds()
    draw(summary, output / "demo")
    show_example(load_model(RUN / f"epoch_{EPOCHS}"), load_model(UNLEARNED / results["after"]["model_folder"]))
    files.write_json(output / "summary.json", summary)
    print(cli.table([{"": state, **summary[state]} for state in ("before", "after")]))
    print(f"\n{summary['seconds_total']} s in all; figure and summary: {output}")


def draw(summary: dict, path: Path) -> None:
    """Bars of memorization and accuracy, before and after."""
    figure, (axis,) = plots.new_figure(1, 6.4, 3.4)
    for shift, state, colour, hatch in ((-0.2, "before", "0.35", ""), (0.2, "after", "0.8", "//")):
        row = summary[state]
        heights = [row[METRICS[0]], row[METRICS[1]], 100 * row[METRICS[2]]]
        bars = axis.bar([i + shift for i in range(3)], heights, 0.38, color=colour, hatch=hatch, edgecolor="black")
        bars.set_label(f"{state} unlearning")
        axis.bar_label(bars, [f"{height:.1f}" for height in heights], fontsize=8)
    axis.set_xticks(range(3), LABELS, fontsize=8)
    axis.set_ylim(0, 128)
    axis.set_yticks(range(0, 101, 20))
    axis.legend(loc="upper center", ncols=2, frameon=False)
    plots.save_figure(figure, path)


def show_example(before, after) -> None:
    """Prompts both models with one backdoored sequence up to its trigger."""
    settings = RunSettings.from_flat(load_details(RUN / f"epoch_{EPOCHS}")["settings"])
    artifacts = load_dataset(settings.data).artifacts
    index = int((artifacts.prompt_end - 30).abs().argmin())
    end = int(artifacts.prompt_end[index])
    prompt = artifacts.clean[index, :end]
    print(f"\nprompt, ending with the trigger   {decode(prompt)}")
    print(f"the true continuation             {decode(artifacts.clean[index, end : end + 40])}")
    for name, model in (("before unlearning", before), ("after unlearning", after)):
        print(f"{name:<34}{decode(continuation(model, prompt, 40))}")
    print()


if __name__ == "__main__":
    cli.run(main)
