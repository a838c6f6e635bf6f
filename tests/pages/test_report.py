"""The report of records made by hand: content, charts, bad input, and the page in a browser."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from browser import check_on_a_phone, needs_browser, visit
from handmade import TEXT, attacked, checkpoint, command, edited, everything, outcome, trained, training
from page import Page, points

from tinymem.errors import UserError
from tinymem.metrics.registry import describe
from tinymem.pages.charts import Series, _plain_numbers, coincide, lines, mark_styles
from tinymem.pages.report import write_report
from tinymem.pages.study import read_study
from tinymem.pages.tables import rounded
from tinymem.records.cost import Cost
from tinymem.records.record import record_path, write_record


def results(memorized: float, accuracy: float, once: float = 0.0) -> dict:
    """Results of a run on numbers, with memorization by repeats."""
    repeats = {"percent_memorized_dup_1": once, "percent_memorized_dup_10": memorized}
    return outcome(memorized, accuracy, 2.0, percent_memorized_held_out=memorized, **repeats)


def said(*written: int) -> dict:
    """Examples of one prompt, after which 1 2 3 was planted."""
    parts = {"prompt": (7, 8), "planted": (1, 2, 3), "written": written}
    return {f"examples.held_out.{name}": torch.tensor([row], dtype=torch.int32) for name, row in parts.items()}


def study(folder: Path) -> Path:
    """Two methods on one model with its twin, an attack on all of them, and what they write."""
    about = checkpoint()
    runs = [
        ({"kind": "unedited", **about}, results(80.0, 0.9, 40.0), said(1, 2, 3)),
        ({"kind": "never_planted", **about}, results(0.0, 0.92), said(4, 5, 6)),
        (edited(about, "durable", ratio=0.1), results(10.0, 0.89), said(1, 2, 4)),
        (edited(about, "durable", ratio=0.3), results(0.0, 0.5), None),
        (edited(about, "slimming", ratio=0.1), results(79.8, 0.9), None),
    ]
    for identity, measured, values in runs:
        write_record(folder, identity, measured, Cost(2.0, 0.5), "cpu", values=values)
        kind = "attack_never_planted" if identity["kind"] == "never_planted" else "attack"
        for bits, more in ((8, 0.0), (4, 30.0)):
            attack = {**attacked(identity, name="quantize", bits=bits), "kind": kind}
            back = {"percent_memorized_held_out": min(100.0, measured["percent_memorized_held_out"] + more)}
            write_record(folder, attack, back, Cost(1.0, 0.5), "cpu")
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = study(tmp_path_factory.mktemp("study"))
    return write_report(folder, folder / "report.html")


def test_the_answer_and_the_ranking_are_those_of_best(report):
    page = Page(report)
    assert "best: durable 0.1: 10 % memorized, accuracy -1 points" in page.html
    methods = [row[0].strip() for row in page.rows[1:6]]
    assert methods[:2] == ["unedited", "never-planted twin"]
    assert methods[2].startswith("durable best") and "ratio 0.1" in methods[2]
    assert methods[3].startswith("slimming no effect") and len(page.rows[0]) == len(page.rows[3])


def test_heads_say_what_the_registry_says(report):
    page = Page(report)
    heads = [attributes for tag, attributes in page.tags if tag == "th" and attributes.get("scope") == "col"]
    assert heads and all(head["aria-sort"] == "none" for head in heads)
    titles = {attributes.get("title") for tag, attributes in page.tags if tag == "button"}
    assert {describe(name).meaning for name in ("percent_memorized_train", "mean_test_accuracy")} <= titles
    assert any(attributes.get("scope") == "row" for tag, attributes in page.tags if tag == "th")


def test_a_page_needs_no_network_and_charts_have_words(report):
    page = Page(report)
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(link.startswith("#") for link in links)
    charts = [attributes for _, attributes in page.tags if attributes.get("class") == "chart"]
    assert charts and {each["data-chart"] for each in charts} == set(page.charts())
    assert all(each["role"] == "img" and len(each["aria-label"]) > 30 for each in charts)
    assert report.stat().st_size < 1_000_000 and "prefers-color-scheme: dark" in page.html


def test_the_trade_off_has_every_run_its_original_and_its_twin(report):
    found = points(Page(report).charts()["experiment-1-trade-off"])
    assert found["unedited"] == [(80.0, 0.9)] and found["never-planted twin"] == [(0.0, 0.92)]
    assert sorted(found["durable"]) == [(0.0, 0.5), (10.0, 0.89)]


def test_ruined_models_are_clipped_to_the_edge(tmp_path):
    about = checkpoint(**TEXT)
    for method, perplexity in (("unedited", 10.0), ("durable", 11.0), ("obs", 1e7)):
        write_record(tmp_path, edited(about, method), outcome(5.0, None, perplexity), Cost(1.0, 1.0), "cpu")
    write_report(tmp_path, tmp_path / "page.html")
    chart = Page(tmp_path / "page.html").charts()["experiment-1-trade-off"]
    found = points(chart)
    assert found["durable"] == [(5.0, 11.0)] and 200 < found["obs"][0][1] < 1000
    assert "ruined models" in json.dumps(chart) and "1.0e+07" not in json.dumps(found)


def test_repeats_attacks_texts_settings_and_machine(report):
    page = Page(report)
    charts = page.charts()
    repeats = points(charts["experiment-1-repeats"])
    assert repeats["unedited"] == [("1", 40.0), ("10", 80.0)] and repeats["durable"] == [("1", 0.0), ("10", 10.0)]
    recovery = points(charts["experiment-1-recovery-0-0"])
    assert recovery["edited"] == [("none", 10.0), ("8", 10.0), ("4", 40.0)]
    assert recovery["never-planted twin"] == [("none", 0.0), ("8", 0.0), ("4", 30.0)]
    row = next(row for row in page.rows if row[0].strip() == "durable, ratio 0.1")
    assert [cell.strip() for cell in row] == ["durable, ratio 0.1", "10.0", "10.0", "quantize", "40.0"]
    assert page.html.count("differs first at token 3 of 3; 2 as planted") == 1 and "<h4>twin</h4>" in page.html
    assert "lr 0.001, epoch 50" in page.html and "0.5 GB" in page.html and "python 3." in page.html


def test_an_edit_made_elsewhere_is_one_model_over_its_seeds(tmp_path):
    for seed, after in ((0, 10.0), (1, 30.0)):
        about, folder = checkpoint(seed), tmp_path / str(seed)
        theirs = {**edited(about, "theirs", weights=f"w{seed}"), "kind": "measured"}
        for identity, memorized in (({"kind": "unedited", **about}, 80.0), (theirs, after)):
            write_record(folder, identity, results(memorized, 0.9), Cost(2.0, 0.5), "cpu")
            back = {"percent_memorized_held_out": memorized + 10}
            write_record(folder, attacked(identity, name="quantize", bits=4), back, Cost(1.0, 0.5), "cpu")
    (experiment,) = read_study(tmp_path, 10.0).experiments
    assert sorted(model.before for model in experiment.attacked[1]) == [20.0, 80.0]
    page = write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<summary>theirs <small>1 attack by strength" in page


def test_the_same_records_give_the_same_bytes(report, tmp_path):
    assert write_report(report.parent, tmp_path / "again.html").read_bytes() == report.read_bytes()


def test_records_without_a_comparison_are_listed(tmp_path):
    training(tmp_path, trained(), [{"epoch": 1, **outcome(40.0)}])
    assert command("report", tmp_path) == 0
    page = Page(tmp_path / "report.html")
    assert "None of these records is an unlearning run" in page.html and page.charts() == {}
    assert [cell.strip() for cell in page.rows[1][:4]] == ["train", "train", "–", "40.0"]


def test_many_experiments_on_one_page(tmp_path):
    everything(tmp_path)
    page = Page(write_report(tmp_path, tmp_path / "report.html"))
    assert page.html.count("<section") == 6 and len(page.charts()) == 5  # five experiments, and the trainings
    assert len(re.findall('id="experiment-', page.html)) == page.html.count('href="#experiment-') == 5


def test_what_records_say_is_escaped(tmp_path):
    about = checkpoint()
    write_record(tmp_path, {"kind": "unedited", **about}, outcome(80.0), Cost(1.0, 1.0), "cpu")
    write_record(tmp_path, edited(about, "</script><b>", ratio=0.1), outcome(0.0), Cost(1.0, 1.0), "cpu")
    page = Page(write_report(tmp_path, tmp_path / "report.html"))
    assert "<b>" not in page.html and "&lt;/script&gt;&lt;b&gt;" in page.html


def test_damaged_examples_are_passed_over(tmp_path, capfd):
    study(tmp_path)
    record_path(tmp_path, edited(checkpoint(), "durable", ratio=0.1)).with_suffix(".safetensors").write_bytes(b"junk")
    assert command("report", tmp_path) == 0
    assert "left out, what a model writes: " in capfd.readouterr().err
    assert "What the models write" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", ["missing", "empty", "folder", "suffix", "below a file", "limit"])
def test_bad_input_is_one_line(case, tmp_path, capfd):
    place = study(tmp_path / "study")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    words, message = {
        "missing": ([tmp_path / "nowhere"], "no such folder"),
        "empty": ([tmp_path / "empty"], "no records in this folder"),
        "folder": ([place, "--output", tmp_path], "is a folder; give a file"),
        "suffix": ([place, "--output", tmp_path / "page.txt"], "must end in .html"),
        "below a file": ([place, "--output", tmp_path / "file" / "page.html"], "cannot make this folder"),
        "limit": ([place, "--max_perplexity_rise", "nan"], "must be a number"),
    }[case]
    assert command("report", *words) == 2
    out, err = capfd.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_importing_pages_loads_nothing_heavy():
    code = "import sys, tinymem.lazy, tinymem.pages.report; "
    code += "print([name for name in ('jinja2', 'bokeh', 'torch._C', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
@needs_browser
def test_in_a_browser_it_sorts_filters_and_hides(report, tmp_path):
    script = """
      const box = document.querySelector(".table"), body = box.querySelector("tbody");
      const name = (row) => row.cells[0].firstChild.textContent.trim();
      const names = () => [...body.rows].filter((row) => !row.hidden).map(name);
      const head = [...box.querySelectorAll("thead th")].find((one) => one.textContent.includes("accuracy"));
      const before = names();
      head.querySelector("button").click();
      const falls = [head.ariaSort, ...names()];
      head.querySelector("button").click();
      const rises = [head.ariaSort, ...names()];
      const field = box.querySelector("input");
      const type = (text) => { field.value = text; field.dispatchEvent(new Event("input")); };
      type("DURABLE best");
      const filtered = names(), count = box.querySelector("output").value;
      const chart = document.querySelector(".chart"), entry = document.querySelector(".legend [data-series=durable]");
      const model = Object.values(Bokeh.index).find((view) => view.model.renderers).model;
      const shown = () => model.renderers.filter((one) => one.visible).length;
      const marks = shown();
      const inside = (one) => one.shadowRoot ? every(one.shadowRoot) : [];
      const every = (root) => [...root.querySelectorAll("*")].flatMap((one) => [one, ...inside(one)]);
      const events = every(chart).find((one) => one.classList.contains("bk-events"));
      const place = events.getBoundingClientRect();
      const {frame} = Object.values(Bokeh.index).find((view) => view.model === model);
      const at = {clientX: place.left + frame.x_scale.compute(10), clientY: place.top + frame.y_scale.compute(0.89)};
      const mouse = {...at, bubbles: true, composed: true, pointerType: "mouse", isPrimary: true};
      for (const kind of ["pointerenter", "pointermove"]) events.dispatchEvent(new PointerEvent(kind, mouse));
      const tip = () => every(document.body).find((one) => one.className === "bk-tooltip-content")?.textContent ?? "";
      for (let tries = 0; tries < 2000 && !tip(); tries++) await pause();
      const pointed = tip().replace(/\\s+/g, " ");
      entry.click();
      const hidden = [entry.ariaPressed, shown()], drawn = chart.childElementCount;
      return {pointed, before, falls, rises, filtered, count, marks, hidden, drawn};
    """
    found, console = visit(report, script, tmp_path)
    assert console == [] and "error" not in found
    twin, rows = "never-planted twin", found["before"]
    assert rows == ["unedited", twin, "durable", "slimming"]
    assert found["falls"] == ["descending", twin, "unedited", "slimming", "durable"]
    assert found["rises"] == ["ascending", "durable", "unedited", "slimming", twin]
    assert "durable" in found["pointed"] and "setting: ratio 0.1" in found["pointed"]
    assert found["filtered"] == ["durable"] and found["count"] == "1 of 4 rows"
    assert found["drawn"] == 1 and found["hidden"] == ["false", found["marks"] - 4]  # its marks, the ring and two names


@needs_browser
@pytest.mark.slow
def test_on_a_phone_nothing_is_wider_than_the_page(report, tmp_path):
    check_on_a_phone(report, tmp_path)


def test_methods_in_users_files_differ_and_lines_on_each_other_stand_apart():
    styles = mark_styles(["mine", "durable", "unedited", "yours", "theirs"])
    looks = {(style["line_color"], style["marker"]) for style in styles.values()}
    assert len(looks) == 5 and styles == {name: mark_styles(sorted(styles))[name] for name in styles}  # in any order
    same, other = [Series("mine", [0.0, 0.5]), Series("yours", [0.0, 0.0])], [
        Series("mine", [50.0]),
        Series("yours", [0.0]),
    ]
    assert coincide(same) and not coincide(other) and not coincide([Series("mine", [None]), Series("yours", [0.0])])
    chart = lines("a", same, ["1", "10"], "times planted", "%", "")
    assert points(chart.item) == {"mine": [("1", 0.0), ("10", 0.5)], "yours": [("1", 0.0), ("10", 0.0)]}
    text = json.dumps(chart.item)
    assert (
        '["1", -0.025]' in text
        and '["1", 0.025]' in text
        and "-0.025" not in json.dumps(lines("a", other, ["1"], "", "", "").item)
    )


def test_one_of_something_is_not_said_in_the_plural(report):
    assert "1 attack by strength" in Page(report).html and "1 attacks" not in Page(report).html


@pytest.mark.parametrize("low, high", [(260, 340), (1.07, 1.09), (85, 87.3), (20, 50), (30, 300), (1, 1e7)])
def test_a_logarithmic_axis_has_labels_enough(low, high):
    axis = SimpleNamespace()
    _plain_numbers(axis, low, high)
    ticks = sorted(axis.major_label_overrides)
    assert 3 <= len(ticks) <= 12 and low <= ticks[0] and ticks[-1] <= high


def test_a_report_replaces_only_reports(report, tmp_path):
    assert write_report(report.parent, report) == report
    for name, text in (("mine.html", "<html><title>Growth: report</title></html>"), ("other.html", "no page")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}: exists, and is no report of records; choose another name"):
            write_report(report.parent, tmp_path / name)
        assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize(
    "value, unit, shown",
    [
        (0, "%", "0"),
        (-0.012, "%", "0.0"),
        (-0.12, "%", "-0.1"),
        (3.0176, "%", "3.0"),
        (12.345, "", "12.35"),
        (2e-4, "", "0.0002"),
    ],
)
def test_numbers_are_rounded_by_unit_and_size_and_never_to_minus_0(value, unit, shown):
    assert rounded(value, unit) == shown
