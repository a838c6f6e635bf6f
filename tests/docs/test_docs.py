"""The documentation holds together: generated tables are up to date, links resolve, examples run."""

import contextlib
import io
import os
import re
import runpy
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from committed import committed
from small import ROOT

import tinymem
from tinymem.errors import UserError
from tinymem.metrics.near_verbatim import levenshtein
from tinymem.records import verdict

SKIPPED = {"runs", "data", "shared", "build"}  # nothing that git holds
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in SKIPPED and path.name[0] != "."]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in folder.rglob("*.md"))])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
make = runpy.run_path(str(ROOT / "docs" / "make.py"))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = sum(other == anchor or re.fullmatch(re.escape(anchor) + r"-\d+", other) is not None for other in found)
        found.add(f"{anchor}-{again}" if again else anchor)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_and_anchors_resolve(path):
    broken = []
    for link in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Two words, `code_name`\n```\n# no heading\n```\n## src/a.py\n## Same\n## Same\n### [Link](x.md)\n"
    )
    assert anchors(page) == {"two-words-code_name", "srcapy", "same", "same-1", "link"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_table_has_a_row_twice(path):
    for block in without_code(path.read_text(encoding="utf-8")).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len(rows) == len(set(rows)), block


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("path", make["PAGES"], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_generated_tables_are_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert make["render"](text, committed) == text, "run python docs/make.py"


def test_the_api_reference_is_up_to_date():
    pages = make["api_pages"]()
    old = [path.name for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    assert len(pages) > 8 and old == [], "run python docs/make.py"


def test_the_api_reference_shows_what_is_public_without_its_code():
    pages = {path.name: text for path, text in make["api_pages"]().items()}
    shown = pages["metrics.md"].partition("\n### memorized\n")[2].partition("\n### ")[0]
    assert "def memorized(model, artifacts: Artifacts, continuation: int" in shown and '"""Return which' in shown
    assert "Probe(model" not in shown and "def _" not in "".join(pages.values())
    for name in tinymem.__all__[1:]:
        assert f"| `{name}` | [tinymem." in pages["README.md"]


@pytest.mark.parametrize("start", ["#SBATCH", "#PBS"])
def test_a_job_file_of_a_cluster_starts_its_sweep(start, tmp_path):
    """It runs as a shell script, with a tinymem that says what it was asked; its flags are those of the sweep."""
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (job,) = (code for code in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if f"\n{start} " in code)
    activate = tmp_path / "TINYMEM" / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text('tinymem() { echo "$PWD: $@"; }')
    environment = {"HOME": str(tmp_path), "PBS_O_WORKDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", job], cwd=tmp_path, env=environment, capture_output=True, text=True)
    place, _, words = done.stdout.strip().partition(": ")
    assert done.returncode == 0 and done.stderr == "" and Path(place) == tmp_path.resolve()
    assert words.split() == "sweep --model_path runs/NAME/epoch_50 --output_dir sweep".split()
    directives = [line for line in job.splitlines()[1:] if line.startswith("#")]
    assert len(directives) > 4 and all(line.startswith(f"{start} -") for line in directives)
    assert job.splitlines()[1 : len(directives) + 1] == directives  # the scheduler reads none after the first command


def test_commands_of_the_study_s_figures_are_there():
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    table = page.partition("\n| of the study |")[2].partition("\n\n")[0]
    places = re.findall(r"`((?:experiments|results)/[\w/]+\.py)", table)
    assert len(set(places)) > 6 and all((ROOT / place).is_file() for place in places)
    drawn = set(re.findall(r"`S`: `(\w+)`", table)) | set(re.findall(r"pythia`: `(\w+)`", table))
    figures = runpy.run_path(str(ROOT / "results" / "make_figures.py"))["FIGURES"]
    assert drawn == {function.__name__ for function in figures} - {"unlearning_bars", "unlearning_time"}  # ours


def test_a_generated_table_has_every_setting_and_replaces_the_old_one():
    written = make["render"]("a\n<!-- settings: subnet -->\nold\n<!-- end -->\nb")
    assert written.startswith("a\n<!-- settings: subnet -->\n\n| setting |") and written.endswith(
        "|\n\n<!-- end -->\nb"
    )
    assert "| `--momentum` | not given | in [0.0, 1.0) |" in written and "old" not in written
    with pytest.raises(UserError, match="no mitigation nonsense"):
        make["render"]("<!-- settings: nonsense -->\n<!-- end -->")


@pytest.mark.parametrize("name", make["mitigations"]())
def test_every_mitigation_has_a_card(name):
    """Heading, sentence, formula, settings, source, cost, measurements, in the table of contents too."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    head = f"\n### {name}\n"
    assert text.count(head) == 1, f"docs/methods.md has no card for {name}: see docs/adding.md"
    assert f"(#{name})" in text.partition("\n## ")[0]
    card = re.split(r"\n#{1,3} ", text.partition(head)[2])[0]
    parts = ("```math", f"<!-- settings: {name} -->", "**Source.**", "**Cost.**", f"<!-- measured: {name} -->")
    assert [part for part in parts if part not in card] == []
    sentence = card.strip().partition("\n\n")[0]
    assert sentence.endswith(".") and "|" not in sentence


def test_the_worked_example_of_memorization_prints_what_it_says(monkeypatch):
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    code, said = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", text, re.DOTALL).groups()
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    # Another processor's last bits may tip a sequence over: the prompt and the count of all must agree.
    line, count = printed.getvalue().splitlines()
    expected_line, expected_count = said.splitlines()
    pattern = r"(\d+) of (\d+) artifacts are memorized: .* %"
    (some, total), (expected, expected_total) = (
        map(int, re.fullmatch(pattern, each).groups()) for each in (count, expected_count)
    )
    assert line == expected_line and total == expected_total and abs(some - expected) <= 10


def test_the_numbers_of_the_worked_example():
    """What docs/metrics.md says of one wrong word of eight is what the metrics give."""
    text = " ".join((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split())
    passage = "Four days will quickly steep themselves in night".split()
    free = "Four days will quickly dream away the time".split()
    near = "Four days will quickly dream themselves in night".split()
    words = {word: number for number, word in enumerate({*passage, *free})}
    rows = [np.array([[words[word] for word in each]]) for each in (passage, free, near)]
    alike = [1 - float(levenshtein(rows[0], other, np.array([8]))[0]) / 8 for other in rows[1:]]
    assert f"a similarity of {alike[0]:g}" in text and f"one wrong word of eight, {alike[1]:g}" in text
    chance = 0.9**7 * 0.4
    assert f"0.9⁷ · 0.4 = {chance:.2f}" in text and round(1 / chance) == 5
    tries = next(n for n in range(1, 99) if 1 - (1 - chance) ** n >= 0.5)
    assert f"Here {tries} tries hold it with probability {1 - (1 - chance) ** tries:.2f}" in text
    assert f"it is ({tries}, 0.5) extractable" in text and "lowered memorization by less than a point" in text
    assert f"more than {verdict.MARGIN} times the twin's loss" in text
