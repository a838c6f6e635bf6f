"""The newcomer's walk: docs/tutorial.md, command by command as it stands there."""

import glob
import json
import re
import shlex
import sys

import pytest
from small import ROOT

from tinymem.__main__ import main

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"Save this as `(\w+\.py)`.*?```python\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for code in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in code.splitlines() if line]
COMMANDS = shlex.split("".join(f"{line} ;; " for line in COMMANDS).replace("\\ ;; ", ""))


def commands() -> list[list[str]]:
    """Every command of the page as words."""
    found: list[list[str]] = [[]]
    for word in COMMANDS:
        found = [*found, []] if word == ";;" else [*found[:-1], [*found[-1], word]]
    return [words for words in found if words]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(words): what a command prints, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name, code in PROGRAMS.items():
        (tmp_path / name).write_text(code, encoding="utf-8")

    def start(words: list[str]) -> str:
        program, *others = [name for word in words for name in (glob.glob(word) if "*" in word else [word])]
        monkeypatch.setattr(sys, "argv", [program, *others])
        if program == "python":
            exec(compile(PROGRAMS[others[0]], others[0], "exec"), {"__name__": "__main__"})
        else:
            assert program == "tinymem" and main() == 0
        return capsys.readouterr().out

    return start


def number(pattern: str, text: str) -> float:
    return float(re.search(pattern, text)[1])


@pytest.mark.slow
def test_the_tutorial(run, tmp_path):
    train, find, unlearn, best, report, look, again = commands()
    assert "step 200: loss " in run(train) and (tmp_path / "my_model" / "model.safetensors").exists()

    found = run(find)
    windows = number(r"(\d+) of \d+ windows are \(16, 24\) memorized", found)
    passages = [json.loads(line)["document"] for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    often = {f"training_text.jsonl:{place}" for place in range(1, 13)}
    assert windows > 100 and len(often & set(passages)) >= 10 and len(set(passages) - often) <= 1

    table = [line.split() for line in run(unlearn).splitlines()]
    rows = {
        tuple(line[:2]): line for line in table if line and line[0] in ("unedited", "activations", "balanced_subnet")
    }
    assert len(rows) == 5 and rows["unedited", "-"][2:4] == ["100.0000"] * 2
    assert (tmp_path / "unlearned" / "unlearning.png").stat().st_size > 10_000

    said = run(best)
    assert re.search(r"1 <- best +balanced_subnet", said)
    assert number(r"best: balanced_subnet \S+: (\S+) % memorized", said) <= 20
    assert number(r"memorized, perplexity ([+-]\S+) %", said) <= 10

    run(report)
    assert "What the models write" in (tmp_path / "unlearned" / "report.html").read_text(encoding="utf-8")

    prompt, passage, before, after = (line.partition(": ")[2] for line in run(look).splitlines())
    assert before == passage != after and prompt

    left = number(r"(\d+) of \d+ windows are \(16, 24\) memorized", run(again))
    assert left < windows / 5


def test_the_page_is_whole():
    """Every program is used, each command once, and numbers in the text are those of the outputs above it."""
    used = [words[1] for words in commands() if words[0] == "python"]
    assert sorted(used) == sorted(PROGRAMS) and len(commands()) == 7
    windows, left = (re.search(rf"(\d+) of 4319 windows are .*: {n} passages", PAGE)[1] for n in (12, 5))
    assert f"{left} of the {windows} windows are left" in " ".join(PAGE.split())
