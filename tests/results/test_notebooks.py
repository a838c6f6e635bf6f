"""Both notebooks, top to bottom, on small data; and as they are committed."""

import json
import re
import signal
import time

import pytest
from handmade import edited
from small import ROOT, in_process, start

from tinymem.records.cost import Cost
from tinymem.records.record import write_record

SCRIPT = "results/run_notebooks.py"
VISUALIZATION, PYTHIA = (
    ROOT / "results" / f"{name}.ipynb" for name in ("Visualization_Notebook", "pythia_unlearning_results")
)


def outputs(path) -> list[dict]:
    """Everything that the code cells of a notebook have put out."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def text_of(outs: list[dict]) -> str:
    return "\n".join("".join(out.get("text", out.get("data", {}).get("text/plain", ""))) for out in outs)


def images(outs: list[dict]) -> int:
    return sum("image/png" in out.get("data", {}) for out in outs)


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """The kernel leaves nothing in the home folder."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))


@pytest.mark.slow
def test_the_visualization_notebook(memorizing_backdoor, quiet, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYMEM_CHECKPOINT", str(memorizing_backdoor.checkpoint))
    in_process(SCRIPT, VISUALIZATION, "--output_dir", tmp_path)
    outs = outputs(tmp_path / VISUALIZATION.name)
    text = text_of(outs)
    assert images(outs) == 2 and "BalancedSubnet" in text and "22222222" in text
    before, after = (re.search(rf"^{row} +([\d.]+)", text, re.M) for row in ("before", r"activations, 5 % of neurons"))
    assert float(before[1]) > 50 and after


@pytest.mark.slow
def test_the_notebook_of_production_models(quiet, tmp_path, monkeypatch):
    results = dict(perplexity_batch_mean=21.0, percent_zeroed=1.0)
    for step in (36000, 143000):
        for method, ratios in {"unedited": [None], "balanced_subnet": [0.01, 0.05], "slimming": [0.1]}.items():
            for ratio in ratios:
                model = {"name": "EleutherAI/pythia-70m", "step": step, "dtype": "float32"}
                sections = {"model": model, "forget": {"holdout_fraction": 0.5}}
                identity = edited(sections, method, **({"ratio": ratio} if ratio else {}))
                share = 100.0 if ratio is None else 40 - 700 * ratio if method == "balanced_subnet" else 90.0
                row = {f"percent_memorized_{part}": share for part in ("train", "shown", "held_out")}
                row["perplexity"] = 40.0 if method == "slimming" else 20.0 + 10 * (ratio or 0)
                write_record(tmp_path / "records_here", identity, {**results, **row}, Cost(3.0, 0.5), "cpu")
    monkeypatch.setenv("TINYMEM_RECORDS", str(tmp_path / "records_here"))
    in_process(SCRIPT, PYTHIA, "--output_dir", tmp_path)
    outs = outputs(tmp_path / PYTHIA.name)
    text = text_of(outs)
    assert images(outs) == 3
    (best,) = set(re.findall(r"^balanced_subnet +(\S+) +(\S+) .*", text[: text.index("Figure")], re.M)[-1:])
    assert float(best[0]) == 0.05 and float(best[1]) == 5.0  # the ratio that memorizes least
    assert "step 36000" in text and "step 143000" in text


@pytest.mark.parametrize("path", [VISUALIZATION, PYTHIA], ids=lambda path: path.stem)
def test_committed_with_outputs(path):
    """From real runs: every code cell ran, in order, without errors, and no machine's paths are in it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outs = outputs(path)
    assert images(outs) >= 2 and all(out["output_type"] != "error" for out in outs)
    assert not re.search(
        r"/home/|/root/|/tmp/|file://|(?<![\w.:/+=])/\w[\w.-]*/|site-packages|Traceback",
        path.read_text(encoding="utf-8"),
    )
    assert path.stat().st_size < 600_000


@pytest.mark.slow
def test_the_committed_notebook_shows_the_committed_records(quiet, tmp_path):
    in_process(SCRIPT, PYTHIA, "--output_dir", tmp_path)
    assert text_of(outputs(tmp_path / PYTHIA.name)) == text_of(outputs(PYTHIA))


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_leaves_the_notebook(quiet, tmp_path):
    begun, path = tmp_path / "begun", tmp_path / "long.ipynb"
    source = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(600)"
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}))
    before, process = path.read_text(), start(SCRIPT, path)
    while not begun.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted; run the same command again" in errors
    assert path.read_text() == before


def test_bad_input(tmp_path, capsys, quiet):
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, tmp_path / "missing.ipynb")
    assert end.value.code == 2 and "no such notebook" in capsys.readouterr().err
    (tmp_path / "text.ipynb").write_text("no JSON")
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, tmp_path / "text.ipynb")
    assert end.value.code == 2 and "text.ipynb: not a notebook" in capsys.readouterr().err
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [], "source": "1 / 0"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
    (tmp_path / "broken.ipynb").write_text(json.dumps(notebook))
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, tmp_path / "broken.ipynb")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.splitlines()[-1].endswith(
        "a cell failed with ZeroDivisionError: division by zero"
    )
    assert json.loads((tmp_path / "broken.ipynb").read_text())["cells"][0]["outputs"] == []  # as it was
