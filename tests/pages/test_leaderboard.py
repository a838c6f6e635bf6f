"""The page of a leaderboard made by hand: rows, anchors, intervals, details, and the switch between cases."""

import json
import re

import pytest
from browser import check_on_a_phone, needs_browser, visit
from page import Page, points

from tinymem.localize.registry import METHODS
from tinymem.metrics.examples import Span
from tinymem.pages.charts import mark_styles
from tinymem.pages.leaderboard import ANCHOR, Board, Case, Entry, Measure, Recovered, Value, write_leaderboard
from tinymem.pages.side_by_side import Text, Written

COLUMNS = (
    Measure("forget", "the worst of four metrics", "0 to 1", "higher"),
    Measure("utility", "accuracy over the twin's", "0 to 1", "higher"),
    Measure("seconds", "of one model", "s", "lower"),
)


def entry(method: str, forget: float, utility: float, group: str = "study", **more) -> Entry:
    values = {"forget": Value(forget, forget - 0.1, forget + 0.05), "utility": Value(utility), "seconds": Value(9.0)}
    return Entry(method, group, "ratio 0.1", values, **more)


def board() -> Board:
    text = Text(
        "1 2", "3 4", {"before": Written((Span("3 4"),), None, 2, 2), "after": Written((Span("<5>", True),), 1, 0, 2)}
    )
    attack = Recovered(((None, 10.0), (8, 20.0), (4, 60.0)), ((None, 0.0), (4, 5.0)), ((None, 100.0),), "bits")
    small = (
        entry("unedited", 0.0, 1.0, ANCHOR),
        entry("random_mask", 0.1, 0.7, ANCHOR),
        entry("durable", 0.9, 0.95, rank="1–2", curves={"quantize": attack}, texts=(text,) * 5),
        entry("npo", 0.8, 0.97, "objective", rank="1–2"),
        entry("obs", 1.0, 0.2, rank="3", qualified=False),
        entry("their <method>", 0.3, 0.9, "submission", rank="4", marks=("given by hand",)),
    )
    large = (entry("durable", 0.4, 0.5, rank="1"), Entry("npo", "objective", qualified=False))
    return Board(
        "Leaderboard",
        ("First paragraph.", "Second <paragraph>."),
        (Case("small", "a small model", "accuracy"), Case("large", "a large model", "accuracy")),
        COLUMNS,
        {"small": small, "large": large},
        ("python experiments/leaderboard.py --small",),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_leaderboard(board(), tmp_path_factory.mktemp("board") / "index.html")


def test_rows_have_rank_setting_interval_and_remarks(page):
    found = Page(page)
    rows = [[" ".join(cell.split()) for cell in row] for row in found.rows[:9]]
    assert [re.sub("[^a-z0-9 ]", "", name).strip() for name in rows[0]] == [
        "method", "rank", "forget 0 to 1", "utility 0 to 1", "seconds s", "group", "model",
    ]  # fmt: skip
    assert rows[1][:2] == ["unedited ratio 0.1", "–"] and rows[1][-2:] == ["anchor", "small"]
    assert rows[3] == ["durable ratio 0.1", "1–2", "0.900 0.800 to 0.950", "0.950", "9.0", "study", "small"]
    assert rows[5][0] == "obs does not qualify ratio 0.1" and rows[6][0] == "their <method> given by hand ratio 0.1"
    assert rows[8] == ["npo does not qualify", "–", "–", "–", "–", "objective", "large"]
    kinds = [attributes.get("class") for tag, attributes in found.tags if tag == "tr"][1:9]
    assert kinds == ["anchor", "anchor", "winner", "winner", "out", None, "winner", "out"]
    assert "their <method>" not in found.html and "Second &lt;paragraph&gt;." in found.html


def test_scatters_have_all_rows_and_a_front_of_qualified_rivals(page):
    charts = Page(page).charts()
    found = points(charts["scatter-small"])
    assert found["durable"] == [(0.9, 0.95)] and found["random mask"] == [(0.1, 0.7)] and len(found) == 6
    text = json.dumps(charts["scatter-small"])
    assert '[["x", [0.9, 0.8]], ["y", [0.95, 0.97]]]' in text  # the anchors and obs are not on the front
    assert "forget" in text and "utility (accuracy)" in text and "ratio 0.1" in text
    assert points(charts["scatter-large"]) == {"durable": [(0.4, 0.5)]}


def test_details_have_curves_attacks_and_the_first_texts(page):
    found = Page(page)
    curves = points(found.charts()["row-2-0"])
    assert curves["edited"] == [("none", 10.0), ("8", 20.0), ("4", 60.0)] and curves["unedited"] == [("none", 100.0)]
    row = next(row for row in found.rows if row[0].strip() == "quantize")
    assert [cell.strip() for cell in row] == ["quantize", "60.0", "55.0", "bits 4"]
    assert found.html.count("<article>") == 3 and "&lt;5&gt;" in found.html
    ids = [attributes["id"] for tag, attributes in found.tags if tag == "details" and "id" in attributes]
    links = {attributes["href"][1:] for tag, attributes in found.tags if tag == "a"}
    assert links == set(ids) and "method-their-method-" in ids and len(ids) == 6
    assert "python experiments/leaderboard.py --small" in found.html


def test_the_same_board_gives_the_same_bytes(page, tmp_path):
    assert write_leaderboard(board(), tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_the_worst_point_is_that_which_exceeds_the_twin_most():
    curve = Recovered(((1, 40.0), (2, 60.0)), ((1, 0.0), (2, 55.0)))
    assert curve.worst == ((1, 40.0), 40.0) and Recovered(curve.points).worst == ((2, 60.0), None)


def test_no_two_methods_have_the_same_mark():
    names = [*METHODS, *(f"own {number}" for number in range(12))]
    marks = [
        tuple(style.get(part) for part in ("marker", "line_color", "fill_color"))
        for style in mark_styles(names).values()
    ]
    assert len(set(marks)) == len(names)


def test_unknown_names_are_refused():
    case = Case("small", "", "accuracy")
    with pytest.raises(ValueError, match="scatter: unknown utility; known are forget, seconds"):
        Board("t", (), (case,), (COLUMNS[0], COLUMNS[2]), {})
    with pytest.raises(ValueError, match="rows: unknown large; known are small"):
        Board("t", (), (case,), COLUMNS, {"large": ()})
    with pytest.raises(ValueError, match="values: unknown speed"):
        Board("t", (), (case,), COLUMNS, {"small": (Entry("m", "study", values={"speed": Value(1.0)}),)})


@pytest.mark.slow
@needs_browser
def test_in_a_browser_the_switch_the_groups_and_the_links_work(page, tmp_path):
    script = """
      const body = document.querySelector(".table tbody");
      const name = (row) => row.cells[0].innerText.split("\\n")[0].split(" ")[0];
      const names = () => [...body.rows].filter((row) => !row.hidden).map(name);
      const pick = (value) => {
        const one = document.querySelector(`input[value="${value}"]`);
        one.checked = true;
        one.dispatchEvent(new Event("input"));
      };
      const sections = () => [...document.querySelectorAll("main [data-of-case]")].filter((one) => !one.hidden).length;
      const folds = () => [...document.querySelectorAll("details[id]")].filter((one) => !one.hidden).length;
      const first = [names(), sections()];
      pick("");
      const all = [names().length, sections()];
      pick("large");
      const large = [names(), sections(), document.querySelector("output").value, folds()];
      pick("");
      const select = document.querySelector("select");
      select.value = "objective"; select.dispatchEvent(new Event("input"));
      const group = names();
      document.querySelector('a[href="#method-durable"]').click();
      const place = document.querySelector("#method-durable");
      while (!place.open) await pause();
      await settled();
      return {first, all, large, group, open: place.open, drawn: place.querySelector(".chart").childElementCount};
    """
    found, console = visit(page, script, tmp_path)
    assert console == [] and "error" not in found
    assert found["first"][1] < 10 and len(found["first"][0]) == 6  # the first model alone
    assert found["all"] == [8, 10] and found["large"] == [["durable", "npo"], 3, "2 of 8 rows", 2]
    assert found["group"] == ["npo", "npo"] and found["open"] and found["drawn"] == 1


@needs_browser
@pytest.mark.slow
def test_on_a_phone_nothing_is_wider_than_the_page(page, tmp_path):
    check_on_a_phone(page, tmp_path)
