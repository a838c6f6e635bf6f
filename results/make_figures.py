"""The study's figures from the records under a folder: PDF and PNG, readable in grey.

    python results/make_figures.py runs
    python results/make_figures.py runs --output_dir results/figures

training            memorization and quality over training, one line per model size
regularizers        the same, one line per regularizer
finetuning          memorization and quality against seconds, for clean, extra and both
unlearning_scatter  memorization against quality of all unlearning runs, with Pareto fronts, a panel per model size
unlearning_bars     the best run of each method side by side: memorization, quality, seconds; a figure per experiment
unlearning_boxes    changes by the best run of each method, over checkpoints and seeds
unlearning_time     memorization against the seconds that a method took
pythia              memorization against perplexity of production models, a panel per model and step

Only figures with records are drawn. If several kinds of data were unlearned, each has its own scatter and time figures
(unlearning_scatter_increment_noise ...).
"""

from tinymem import cli

# isort: split
import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinymem import plots
from tinymem.cli.records import perplexity_rise
from tinymem.errors import UserError
from tinymem.folders import check_writable
from tinymem.localize.registry import METHODS
from tinymem.records.choose import Configuration, best, configurations, experiments, unlearning_runs
from tinymem.records.curves import Curve, training_curves
from tinymem.records.grouping import grouped
from tinymem.records.identity import UNEDITED
from tinymem.records.strength import with_strength
from tinymem.records.table import mixed_versions, named_records, versions


@dataclass(frozen=True)
class Material:
    """The content of the records: curves of training and fine-tuning, and unlearning runs over their seeds."""

    curves: Sequence[Curve]
    unlearning: Sequence[Configuration]
    max_perplexity_rise: float

    def trained(self) -> list[Curve]:
        return [curve for curve in self.curves if curve.run == "train"]

    def edited(self, production: bool) -> list[Configuration]:
        """Return the unlearning runs of production models, or of TinyMem's."""
        return [c for c in self.unlearning if ("model.name" in c.experiment) == production]


Figures = dict[str, Any]  # ending of the file's name -> figure; empty when there is nothing to draw


def training(material: Material) -> Figures:
    plain = [curve for curve in material.trained() if not plots.is_regularized(curve)]
    return {"": plots.draw_by_size(plain)} if plain else {}


def regularizers(material: Material) -> Figures:
    some = material.trained()
    return {"": plots.draw_regularizers(some)} if any(map(plots.is_regularized, some)) else {}


def finetuning(material: Material) -> Figures:
    tuned = [curve for curve in material.curves if curve.run == "finetune"]
    return {"": plots.draw_finetuning(tuned)} if tuned else {}


def unlearning_scatter(material: Material) -> Figures:
    return by_data(material.edited(production=False), plots.draw_scatter)


def unlearning_time(material: Material) -> Figures:
    return by_data(material.edited(production=False), plots.draw_time)


def unlearning_bars(material: Material) -> Figures:
    """Yield a figure for each experiment with runs of methods, numbered if there are several."""
    groups = [best(group, material.max_perplexity_rise) for group in experiments(material.unlearning)]
    groups = [group for group in groups if len(group) > 1 and any(one.method == UNEDITED for one in group)]
    figures = {}
    for number, group in enumerate(groups, 1):
        unedited, *edited = sorted(group, key=lambda one: (one.method != UNEDITED, _family(one), one.method))
        rows = [as_bar(one) for one in (unedited, *edited)]
        figures[f"_{number}" if len(groups) > 1 else ""] = plots.draw_mitigations(rows, bar_measures(unedited))
    return figures


def as_bar(one: Configuration) -> dict[str, Any]:
    """Return a row of unlearning_bars: the means over the seeds."""
    accuracy = one.mean("mean_test_accuracy")
    columns = ("percent_memorized_train", "percent_memorized_test", "perplexity", "cost.seconds")
    row = {"family": _family(one), "method": with_strength(one.method, one.hyper_parameters)}
    row |= {column: one.mean(column) for column in columns}
    return row | {"percent_accuracy": None if accuracy is None else 100 * accuracy}


def bar_measures(unedited: Configuration) -> list[plots.Measure]:
    """Return the panels of unlearning_bars: number models are judged by accuracy, all others by perplexity."""
    accuracy = plots.Measure("percent_accuracy", "mean test accuracy (%)", "change", digits=2)
    perplexity = plots.Measure("perplexity", "perplexity", "log change", digits=2)
    unseen = ("percent_memorized_test", "of triggers that were never trained on")
    return [
        plots.Measure("percent_memorized_train", "% of artifacts memorized", digits=1, beside=unseen),
        accuracy if unedited.on_numbers else perplexity,
        plots.Measure("cost.seconds", "seconds", "seconds", digits=None),
    ]


def _family(one: Configuration) -> str:
    return "no mitigation" if one.method == UNEDITED else plots.families().get(one.method, plots.OWN)


def unlearning_boxes(material: Material) -> Figures:
    groups = experiments(material.unlearning)
    chosen = [c for group in groups for c in best(group, material.max_perplexity_rise) if c.method != UNEDITED]
    return {"": plots.draw_boxes(chosen)} if chosen else {}


def pythia(material: Material) -> Figures:
    edited = material.edited(production=True)
    return {"": plots.draw_scatter(edited, column="model.name")} if edited else {}


def by_data(some: Sequence[Configuration], draw: Callable) -> Figures:
    """Yield a figure for each data set and kind of artifact."""

    def name(configuration: Configuration) -> str:
        return "_".join(str(configuration.experiment.get(column)) for column in ("data.data_name", "data.artifact"))

    kinds = grouped(some, name)
    return {f"_{name(kind[0])}" if len(kinds) > 1 else "": draw(kind) for kind in kinds}


EDITS = "edits beside a record of their unedited model; on text, edits within --max_perplexity_rise"
# The function, whose name is the file's -> the records it needs.
FIGURES: dict[Callable[[Material], Figures], str] = {
    training: "training runs without a regularizer (memorization_in_toy_models.py)",
    regularizers: "training runs with a regularizer (memorization_in_toy_models.py --spectral_reg ...)",
    finetuning: "fine-tunings (ft_toy_model.py)",
    unlearning_scatter: "unlearning runs of TinyMem models (src/localize/localize_memorization.py)",
    unlearning_bars: EDITS,
    unlearning_boxes: EDITS,
    unlearning_time: "unlearning runs of TinyMem models (src/localize/localize_memorization.py)",
    pythia: "unlearning runs of production models",
}


def parse() -> argparse.Namespace:
    parser = cli.Parser(__doc__, usage="%(prog)s DIR [options]")
    parser.add_argument("folder", metavar="DIR", help="a folder with records in it, at any depth")
    parser.add_argument("--output_dir", help="where the figures are written (default: DIR/figures)")
    parser.add_argument(
        "--max_perplexity_rise", type=float, default=10.0, metavar="PERCENT",
        help="unlearning_bars and unlearning_boxes, text: a run whose perplexity rose more is never best (default: 10)",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    limit = perplexity_rise(arguments)
    records = list(named_records(arguments.folder))
    message = mixed_versions(versions(record) for _, record in records)
    if message:
        print(message, file=sys.stderr)
    output = Path(arguments.output_dir or Path(arguments.folder) / "figures")
    check_writable(output)  # the first figure makes it
    runs = unlearning_runs(records, tuple(METHODS), warn=lambda text: print(text, file=sys.stderr))
    curves = training_curves(arguments.folder, records)
    material = Material(curves, configurations(runs), limit)
    drawn = 0
    for function, needed in FIGURES.items():
        figures = function(material)
        for ending, figure in figures.items():
            print(*plots.save_figure(figure, output / f"{function.__name__}{ending}"), sep="\n")
        if not figures:
            print(f"{function.__name__}: not drawn, {arguments.folder} has no {needed}", file=sys.stderr)
        drawn += len(figures)
    if not drawn:
        raise UserError(f"{arguments.folder}: none of its {len(records)} records can be drawn")


if __name__ == "__main__":
    cli.run(main)
