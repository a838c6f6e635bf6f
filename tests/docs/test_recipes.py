"""The recipes of docs/adding.md run as they stand there."""

import re
import shutil

import pytest
from small import ROOT, in_process

from tinymem.metrics.registry import plugin_metrics
from tinymem.records.table import load_records, shown_row

PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")


def code_of(recipe: str) -> str:
    part = PAGE[PAGE.index(f"<!-- recipe: {recipe} -->") :].partition("<!-- end recipe -->")[0]
    (code,) = re.findall(r"```python\n(.*?)```", part, flags=re.S)
    return code


@pytest.fixture
def place(tmp_path):
    for recipe in ("method", "metric", "attack"):
        (tmp_path / f"my_{recipe}.py").write_text(code_of(recipe))
    return tmp_path


def test_a_method_a_metric_and_an_attack(place, memorizing_backdoor):
    checkpoint = shutil.copytree(memorizing_backdoor.checkpoint, place / "run" / "epoch_6")
    in_process(
        "src/localize/localize_memorization.py", "--model_path", checkpoint, "--output_dir", place / "out",
        "--data_dir", place / "data", "--localization_method", place / "my_method.py", "--steps", 2, "--lr", 0.01,
        "--attack", place / "my_attack.py", "--my_attack.step", 0.05,
        "--metrics", "percent_memorized", "perplexity", place / "my_metric.py",
    )  # fmt: skip
    rows = {(row["method"], row.get("attack")): row for row in map(shown_row, load_records(place / "out"))}
    attack = "my_attack step 0.05"
    assert set(rows) == {(method, found) for method in ("unedited", "my_method") for found in (None, attack)}
    before, after = rows["unedited", None], rows["my_method", None]
    # A sequence that comes out exactly is as similar as can be, so that the one bounds the other.
    assert before["percent_memorized_train"] / 100 <= before["similarity_train"] <= 1
    assert after["perplexity"] > before["perplexity"] and after["percent_changed"] > 50
    assert rows["unedited", attack]["perplexity"] != before["perplexity"]


def test_the_distance_of_the_recipe(place):
    (metric,) = plugin_metrics(str(place / "my_metric.py"))
    distance = metric.values.__globals__["distance"]
    for one, other, expected in (("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("ab", "ba", 2)):
        assert distance(list(one), list(other)) == distance(list(other), list(one)) == expected
