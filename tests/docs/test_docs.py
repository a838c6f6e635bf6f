"""The documentation holds together: generated tables are up to date, links resolve, examples run."""

import contextlib
import io
import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import pytest
from committed import committed
from small import ROOT

import tinymem
from tinymem.errors import UserError

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
