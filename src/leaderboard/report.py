"""The leaderboard's files, from evidence alone: LEADERBOARD.md, ATTACKS.md, index.html and leaderboard.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.attacks.registry import ATTACKS
from tinymem.leaderboard import evidence
from tinymem.leaderboard.board import ABSENT, TWIN, Row, averaged_under_attack, rows
from tinymem.leaderboard.cases import Case, read_case
from tinymem.leaderboard.entrants import ANCHOR, entrants
from tinymem.leaderboard.evidence import FORGETTING, JUDGED, PRIVACY, Evidence
from tinymem.leaderboard.names import COMMAND, DIGITS, NAMES, within
from tinymem.leaderboard.page import Page
from tinymem.leaderboard.score import FLOOR, PARTS, Figure, Jury, columns
from tinymem.records.identity import record_digest
from tinymem.records.table import markdown, versions, write_csv

ABOUT = """\
- score: harmonic mean of forget, private, robust and useful, each raised to at least 0.01. Mean over seeds with its
  95 % interval (hierarchical bootstrap over seeds and sequences). rank: counts only paired differences whose interval
  excludes 0.
- forget: the worst of four metrics on held-out sequences: 0 for the unedited model, 1 for the never-planted twin;
  overshooting the twin is subtracted.
- private: the worst of three membership scores, by AUC, on the same scale.
- robust: 1 minus the share of the memories that the worst attack brings back in excess of the twin.
- useful: accuracy (text: perplexity) relative to the twin's.
- Metrics that do not tell the unedited model from its twin are left out, and so are parts that have no other metric.
- Every mitigation tries the same number of settings (fewer if it trains a model from scratch). The setting that forgets
  most of the first seed's validation sequences within the limit runs on all seeds. No number here uses these sequences.
"""
ATTACK_ABOUT = """\
- % of the sequences that the method was told to forget, under each attack at the setting that brings back most.
  Sequences that the attacker has seen are not measured. Mean over seeds.
- excess: how many points more the worst attack brings back than the same attack, with the same budget, brings back from
  the never-planted twin, with its 95 % interval. `interpolate`, whose attacker has the original, does not count.
- `relearn_all` trains on all measured sequences: only its excess counts.
"""


@dataclass(frozen=True)
class Table:
    """A table as shown: its title, and its rows by column."""

    title: str
    shown: list[dict[str, Any]]


def write(output: Path, names: Sequence[str]) -> list[Table]:
    """Write all files of the leaderboard from the evidence in OUTPUT/NAME. Return the tables."""
    tables: list[Table] = []
    page = Page()
    texts: dict[str, list[str]] = {"LEADERBOARD.md": [], "ATTACKS.md": []}
    lines: list[dict[str, Any]] = []
    for name in names:
        case, found = read_case(output / name), evidence.read(output / name)
        head = f"## {name}\n\n{origin(case, found)}\n"
        texts["LEADERBOARD.md"].append(head)
        jury, taking_part = Jury(found, case.utility.column), entrants([], case)
        for limit in case.utility.limits:
            board = rows(jury, case, taking_part, limit)
            table = Table(f"{name}, {within(case, limit)}", shown_rows(board))
            tables.append(table)
            title, is_first = f"### {within(case, limit).capitalize()}\n", limit == case.utility.limits[0]
            held = held_down(board)
            remarks = [*left_out(board), telling(jury), *missing_attacks(jury), *held]
            below = remarks if is_first else held
            texts["LEADERBOARD.md"] += [
                title,
                *(f"{text}\n" for text in (markdown_of(table.shown), *map(escaped, below))),
            ]
            lines += [line(name, limit, row) for row in board]
            page.add(case, limit, board, found, remarks)
            if is_first:
                texts["ATTACKS.md"] += [head, title, markdown_of(attack_rows(board, found))]
    heads = {
        "LEADERBOARD.md": ("# Leaderboard", ABOUT),
        "ATTACKS.md": ("# Attacks: is it gone, or only hidden?", ATTACK_ABOUT),
    }
    for file, (title, about) in heads.items():
        content = "\n".join([f"{title}\n\nMade by `{COMMAND}` from the records.\n\n{about}", *texts[file]])
        files.write_file(output / file, partial(Path.write_text, data=content, encoding="utf-8"))
    page.write(output / "index.html")
    write_csv(output / "leaderboard.csv", lines)
    return tables


def origin(case: Case, found: Evidence) -> str:
    """Return a sentence on the subject of a model's evidence and the versions that made it."""
    made = ", ".join(sorted({versions(record) for record in found.records}))
    return f"{escaped(case.description)}. Seeds {', '.join(map(str, found.seeds))}; {made}."


def left_out(board: Sequence[Row]) -> list[str]:
    """Return a sentence for each reason why rows are left out of the table."""
    names = {words: [row.name for row in board if row.note == note] for note, words in ABSENT.items()}
    return [f"{words}: {', '.join(absent)}." for words, absent in names.items() if absent]


def missing_attacks(jury: Jury) -> list[str]:
    """Return a sentence on the attacks that count for no row, since a twin or an unedited model lacks them."""
    return [f"Left out of robust: {'; '.join(jury.missing_attacks)}."] if jury.missing_attacks else []


def held_down(board: Sequence[Row]) -> list[str]:
    """Return a sentence on the rows whose score is limited by a single part, if there are any."""
    ranked = [row.figures for row in board if row.rank]
    parts = [{name: part.value for name in PARTS if (part := figures.get(name))} for figures in ranked]
    low = [[name for name, value in found.items() if value <= FLOOR] for found in parts]
    if not any(low):
        return []
    most = len(parts[0]) / (1 / FLOOR + len(parts[0]) - 1)
    which = ", ".join(f"{name} in {rows}" for name, rows in Counter(chain.from_iterable(low)).most_common())
    return [
        f"A part of {FLOOR:g} or less keeps the score at {most:.2f} or less, whatever the other parts are. This is "
        f"so for {sum(map(bool, low))} of {len(ranked)} mitigations ({which}); their other parts decide their order."
    ]


def shown_rows(board: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of a table as text, by column."""
    found = []
    for row in (row for row in board if row.note not in ABSENT):
        shown = {"rank": _rank(row), "method": row.name, "setting": row.setting}
        if row.note:
            found.append(shown | {"score": row.note})
            continue
        shown |= {NAMES.get(name, name): _figure(each, name, name == "score") for name, each in row.figures.items()}
        worst = row.worst_attack
        shown["worst attack"] = f"{worst[0]} +{worst[1].value:.0f}" if worst and worst[1].value > 0 else "-"
        shown |= {NAMES.get(name, name): _number(value, name) for name, value in row.plain.items()}
        found.append(shown | {"needs": row.needs, "trials": str(row.trials or "-")})
    names = list(dict.fromkeys(name for row in sorted(found, key=len, reverse=True) for name in row))
    return [{name: row.get(name, "-") for name in names} for row in found]


def attack_rows(board: Sequence[Row], found: Evidence) -> list[dict[str, Any]]:
    """Return a row per attacked model: what each attack, users' too, brings back, and the worst excess."""
    attacked = [(row, curves) for row in board if (curves := averaged_under_attack(row, found)) is not None]
    attacks = dict.fromkeys([*ATTACKS, *(curve.attack for _, curves in attacked for curve in curves.curves)])
    rows = []
    for row, curves in attacked:
        worst = row.worst_attack
        shown = {"model": row.name, "setting": row.setting, "before": f"{curves.before:.1f}"}
        shown["excess"] = "-" if worst is None or row.group == ANCHOR and row.name == TWIN else worst[1].words(1)
        for name in attacks:
            values = [curve.worst for curve in curves.curves if curve.attack == name]
            shown[name] = f"{max(values):.1f}" if values else "-"
        rows.append(shown)
    return rows


def markdown_of(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "No attack has been made.\n"
    return markdown(list(rows[0]), [map(escaped, row.values()) for row in rows], numbers=True)


def escaped(cell: str) -> str:
    """Return a text, such as a user's name or description, escaped for Markdown and its tables."""
    return cell.replace("|", r"\|").replace("<", "&lt;")


def line(case: str, limit: float, row: Row) -> dict[str, Any]:
    """Return a row of leaderboard.csv: every number with the ends of its interval, and the records it comes from."""
    found: dict[str, Any] = {
        "case": case,
        "limit": limit,
        "method": row.name,
        "group": row.group,
        "setting": row.setting,
    }
    found |= {"rank_best": row.rank and row.rank[0], "rank_worst": row.rank and row.rank[1], "note": row.note}
    found |= columns({**row.figures, **{f"excess_{name}": figure for name, figure in row.excess.items()}})
    found |= {**row.plain, "needs": row.needs, "trials": row.trials}
    return found | {"records": " ".join(record_digest(record) for record in row.records)}


def telling(jury: Jury) -> str:
    """Return text on which metrics tell the unedited model from its twin, and whether attacks do."""
    known = [NAMES[f"{name}_{JUDGED}"] for name in (*FORGETTING, *PRIVACY)]
    judging = [NAMES[column] for column in jury.telling]
    silent = [name for name in known if name not in judging]
    without = f" Left out, since they do not tell the unedited model from its twin here: {', '.join(silent)}."
    useless = jury.excess(jury.original) and not jury.attacks_tell
    attacks = " No attack brings more out of the unedited model than out of its twin: robust is left out."
    return f"Judged by: {', '.join(judging) or 'nothing'}.{without if silent else ''}{attacks if useless else ''}"


def _rank(row: Row) -> str:
    if row.rank is None:
        return "-"
    low, high = row.rank
    return str(low) if low == high else f"{low}-{high}"


def _figure(figure: Figure | None, name: str, interval: bool) -> str:
    if figure is None:
        return "-"
    return figure.words(DIGITS.get(name, 2)) if interval else _number(figure.value, name)


def _number(value: float | None, name: str) -> str:
    return "-" if value is None else f"{value:.{DIGITS.get(name, 2)}f}"
