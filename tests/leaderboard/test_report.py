"""The leaderboard's files from evidence written by hand: what a reader is told beside the figures."""

import pytest
from boards import TWIN_MODEL, UNEDITED_MODEL, Model, write_board

from tinymem.leaderboard import report
from tinymem.leaderboard.bench import bench_of
from tinymem.leaderboard.board import Row
from tinymem.leaderboard.cases import find_cases
from tinymem.leaderboard.score import Figure
from tinymem.records.identity import MEASURED, NEVER_PLANTED, UNEDITED, UNLEARN

(NOISE,) = find_cases(["noise"], True, 3)
MODELS = {
    (UNEDITED, 0): [UNEDITED_MODEL],
    (NEVER_PLANTED, 0): [TWIN_MODEL],
    ("npo", 0): [Model(4, 4, 0.9, 4)],
    ("obs", 0): [Model(1, 1, 0.9, 2)],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a leaderboard with a submission and a method of one's own, both of one name."""
    base = bench_of(NOISE, 0).base
    theirs = {"kind": MEASURED, **base, "method": {"name": "a | b", "weights": "0"}}
    mine = {"kind": UNLEARN, **base, "method": {"name": "a | b", "code": "0123456789", "ratio": 0.1}}
    more = [(theirs, Model(2, 2, 0.9, 2)), (mine, Model(3, 3, 0.9, 3))]
    folder = write_board(tmp_path_factory.mktemp("board"), NOISE, MODELS, more)
    report.write(folder, ["noise"])
    return folder


def test_what_stands_below_a_table_is_no_row_of_it(written):
    text = (written / "LEADERBOARD.md").read_text()
    below = [part for part in text.split("\n\n") if not part.startswith(("|", "#", "-"))]
    assert [part.split(":")[0].split(",")[0] for part in below[2:]] == [
        "Not run", "Judged by", "A part of 0.01 or less keeps the score at 0.03 or less",
        "A part of 0.01 or less keeps the score at 0.03 or less",
    ]  # fmt: skip
    assert "Judged by: exact %." in (written / "index.html").read_text()


def test_the_attacks_are_on_what_one_limit_has_chosen(written):
    assert "### Within 1 point of accuracy\n\n| model |" in (written / "ATTACKS.md").read_text()


def test_a_submission_and_a_method_of_ones_own_have_a_row_each(written):
    lines = (written / "LEADERBOARD.md").read_text().split("### Within 5")[0].splitlines()
    assert [line.split(" | ")[2] for line in lines if r"| a \| b |" in line] == ["as submitted", "ratio 0.1"]


def row(rank=(1, 2), **parts: float) -> Row:
    return Row("npo", "objective", "", figures={n: Figure(v, v, v) for n, v in parts.items()}, rank=rank)


def test_which_part_keeps_scores_down():
    good = dict(forget=0.9, private=0.011, robust=1.0, useful=1.0)
    rows = [row(**good), row(**good | {"private": 0.01}), row(**good | {"private": 0.0, "forget": 0.0})]
    anchor = row(None, **good | {"robust": 0.0})
    assert report.held_down([*rows, anchor]) == [
        "A part of 0.01 or less keeps the score at 0.04 or less, whatever the others are: so it is in 2 of 3 mitigations "
        "(private in 2, forget in 1). They stand in the order of their other parts."
    ]
    assert report.held_down([rows[0], anchor]) == [] == report.held_down([])


def test_the_bound_counts_the_parts_that_there_are():
    (said,) = report.held_down([row(forget=0.0, robust=1.0, useful=1.0)])
    assert "keeps the score at 0.03 or less" in said  # 3 / (100 + 2)
