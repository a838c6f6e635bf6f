"""Compare all mitigations of a model in a table and a figure, from the leaderboard's evidence.

    python experiments/basic_train/compare_mitigations.py                         all models with committed evidence
    python experiments/basic_train/compare_mitigations.py --models noise --limit 5 --output_dir runs/compared
    python experiments/basic_train/compare_mitigations.py --leaderboard_dir runs/board --output_dir runs/compared

This runs no training: experiments/leaderboard.py trains, tunes, attacks and measures small models (--small) or the
study's. For each mitigation, it shows the run that the leaderboard chose within a limit of lost utility, on sequences
that no mitigation saw: means over seeds with 95 % intervals. Writes OUTPUT_DIR/NAME/: table.csv, table.md, figure.png,
figure.pdf.
"""

from tinymem import cli

# isort: split
import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinymem import files, plots
from tinymem.errors import UserError
from tinymem.leaderboard import evidence, report
from tinymem.leaderboard.board import ABSENT, TWIN, UNEDITED, Row, rows
from tinymem.leaderboard.cases import Case, read_case, with_evidence
from tinymem.leaderboard.entrants import ANCHOR, FINETUNING, OWN, SUBMISSION, TRAINING, entrants
from tinymem.leaderboard.names import DIGITS, NAMES, within
from tinymem.leaderboard.score import Figure, Jury, columns, figure_in
from tinymem.records.bundle import NAME
from tinymem.records.table import markdown, write_csv

BOARD, OUTPUT, MAKES = "results/leaderboard", "results/compare_mitigations", "experiments/leaderboard.py makes it"
UNMITIGATED = "no mitigation"
FAMILIES = {UNMITIGATED: UNMITIGATED, ANCHOR: "controls", TRAINING: "regularizers", FINETUNING: "fine-tuning"}
FAMILIES |= {"neuron": "neurons", "weight": "weights", "objective": "objectives", "curvature": "curvature"}
FAMILIES |= {OWN: plots.OWN, SUBMISSION: plots.OWN}
HELD_OUT, SHOWN, EXTRACTABLE = "percent_memorized_held_out", "percent_memorized_shown", "percent_extractable_held_out"
FORGOTTEN = (HELD_OUT, SHOWN, "percent_near_verbatim_held_out", EXTRACTABLE, "auc_loss_held_out")
LOST, EXCESS, ATTACK = "utility_lost", "attack_excess", "attack"
WITH_INTERVAL = (HELD_OUT, LOST, EXCESS)  # in table.md; table.csv has all
NOTES = """\
- exact: sequences that are reproduced token by token. They are held out unless marked as shown to the mitigation. Best
  is the twin's value.
- extractable: 100 samples contain the sequence with a probability of 0.5. AUC: of telling sequences from never-planted
  ones by their loss.
- lost: {unit}, against the unedited model. Settings keep the limit on the first seed; the mean may exceed it.
- excess: how many points more the worst attack brings back than from the twin. seconds: to find the edit, or to train.
- In brackets: 95 % intervals. Within a family, the best score on the leaderboard (docs/leaderboard.md) comes first.
"""


def parse() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all that have evidence")
    about = "1 or 5 points of accuracy, 2 or 10 %% of perplexity (default: 1 or 2)"
    parser.add_argument("--limit", type=float, help=f"what a mitigation may cost: {about}")
    parser.add_argument("--leaderboard_dir", default=BOARD, metavar="DIR", help=f"evidence (default: {BOARD})")
    parser.add_argument("--output_dir", default=OUTPUT, metavar="DIR", help=f"default: {OUTPUT}")
    return parser.parse_args()


def chosen_models(folder: Path, asked: Sequence[str] | None) -> list[str]:
    """Return the requested models. Raise UserError for a model without evidence."""
    known = with_evidence(folder)
    if not known:
        raise UserError(f"--leaderboard_dir {folder}: no MODEL/{NAME} in it; {MAKES}")
    for name in asked or ():
        if name not in known:
            raise UserError(f"--models {name}: {folder} has evidence of {', '.join(known)} alone; {MAKES}")
    return list(asked or known)


def read(folder: Path, asked: float | None) -> tuple[Case, float, Jury]:
    """Return a model, the limit of lost utility, and its jury. Raise UserError for damaged evidence or a bad limit."""
    try:
        case = read_case(folder)
        jury = Jury(evidence.read(folder), case.utility.column)
    except UserError as error:
        raise UserError(f"{error}; {MAKES}") from None
    least, most = case.utility.limits
    if asked not in (None, least, most):
        raise UserError(f"--limit {asked:g}: must be {least:g} or {most:g} ({case.utility.unit}) for {case.name}")
    if any(Figure.of(jury.figure(models, jury.utility)) is None for models in (jury.original, jury.twin)):
        raise UserError(f"{folder}: no values of its unedited model and its twin; {MAKES}")
    return case, least if asked is None else asked, jury


def as_row(case: Case, jury: Jury, row: Row) -> dict[str, Any]:
    """Return a row of table.csv: numbers with the ends of their intervals, None where missing."""
    attack, excess = row.worst_attack or ("", None)
    figures = {name: row.figures.get(name) for name in ("score", *FORGOTTEN, jury.utility)}
    figures |= {LOST: None, EXCESS: excess}
    if row.records:
        now, before = (jury.figure(records, jury.utility) for records in (row.records, jury.original))
        figures[LOST] = Figure.of(case.utility.loss(now, before))
    family = UNMITIGATED if row.name in (UNEDITED, TWIN) else FAMILIES[row.group]
    about = {"family": family, "method": row.name, "setting": row.setting, "note": row.note or None}
    cost = {ATTACK: attack if excess and excess.value > 0 else "", "seconds": row.plain.get("seconds")}
    return {**about, **columns(figures), **cost}


def readable(row: Mapping[str, Any], utility: str) -> dict[str, str]:
    """Return a row under short names, as printed and as in table.md."""

    def text(name: str) -> str:
        if row[name] is None:
            return "-"
        return figure_in(row, name).words(1) if name in WITH_INTERVAL else f"{row[name]:.{DIGITS.get(name, 2)}f}"

    shown = {"family": row["family"], "method": row["method"], "setting": row["note"] or row["setting"] or "-"}
    shown |= {NAMES[name]: text(name) for name in FORGOTTEN} | {NAMES.get(utility, utility): text(utility)}
    shown |= {"lost": text(LOST), "excess": f"{text(EXCESS)} {row[ATTACK]}".rstrip()}
    return shown | {"seconds": "-" if row["seconds"] is None else plots.two_digits(row["seconds"])}


def panels(case: Case) -> list[plots.Measure]:
    """Return the measures of the figure."""
    return [
        plots.Measure(HELD_OUT, "% exact, held out", beside=(SHOWN, "of the sequences that the mitigation was shown")),
        plots.Measure(EXTRACTABLE, "% extractable, held out"),
        plots.Measure(LOST, f"lost, {case.utility.unit}", "change", digits=1),
        plots.Measure(EXCESS, "worst attack, above the twin", note=ATTACK),
        plots.Measure("seconds", "seconds", "seconds", digits=None),
    ]


def compare(case: Case, limit: float, jury: Jury, output: Path) -> list[dict[str, str]]:
    """Write the table and the figure of a model. Return the table as shown."""
    board = rows(jury, case, entrants([], case), limit)
    table = [as_row(case, jury, row) for row in board if row.note not in ABSENT]
    table.sort(key=lambda row: (list(FAMILIES.values()).index(row["family"]), row["method"] == TWIN))
    write_csv(output / "table.csv", table)
    title, shown = f"{case.name}, {within(case, limit)}", [readable(row, jury.utility) for row in table]
    plots.plot_mitigations(table, panels(case), output / "figure", title)
    head = [f"# Mitigations: {title}", f"Made by `{cli.command_line()}`.", report.origin(case, jury.evidence)]
    lines = markdown(list(shown[0]), (map(report.escaped, row.values()) for row in shown))
    content = "\n\n".join([*head, lines, *report.left_out(board), NOTES.format(unit=case.utility.unit)])
    files.write_file(output / "table.md", partial(Path.write_text, data=content, encoding="utf-8"))
    return shown


def main() -> None:
    arguments = parse()
    source, output = Path(arguments.leaderboard_dir), Path(arguments.output_dir)
    models = [read(source / name, arguments.limit) for name in chosen_models(source, arguments.models)]
    files.writable_folder(output)
    for case, limit, jury in models:
        shown = compare(case, limit, jury, output / case.name)
        order = sorted(shown[0], key=["family", "setting"].__contains__)  # words last: they are cut first
        print(f"{cli.fitted_table(shown, order, {}, more='table.md has them')}\n\n{output / case.name}\n")


if __name__ == "__main__":
    cli.run(main)
