"""The language model demo in miniature: a tiny Llama with a tokenizer of its own, every command, one summary."""

import json
import re
import shlex
import sys
from contextlib import nullcontext

import pytest
from planted import SETTINGS, write_model_and_text
from small import ROOT, in_process

from tinymem import files
from tinymem.errors import UserError
from tinymem.localize.registry import STUDY
from tinymem.records.table import load_records, shown_row

BALANCED = "--localization_method balanced_subnet --ratio 0.3 --epochs 8 --batch_size 8"  # enough for so small a model
LAYERS = "21,22,23"  # of K-FAC, which the tiny model does not have
pytestmark = pytest.mark.slow  # all of the demo's commands; what they do is tested by the script's own tests


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with llama/, a random model, and addresses.jsonl, thirty documents of random words."""
    folder = tmp_path_factory.mktemp("demo_lm")
    write_model_and_text(folder)
    return folder


FLAGS = [str(word) for name, value in SETTINGS.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def demo(place):
    """run(*flags) -> summary.json, in `place`; the demo's commands run in this process, which spares eight starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        import demo_lm

        patch.chdir(place)
        patch.setattr(demo_lm, "start_at_root", lambda output_dir: files.writable_folder(place / output_dir))
        commands = []

        def command(text: str) -> None:
            commands.append(text)
            in_process(*shlex.split(text))

        patch.setattr(demo_lm, "run", command)
        patch.setattr(demo_lm, "COMMANDS", (BALANCED, *(text.replace(LAYERS, "0") for text in demo_lm.COMMANDS[1:])))

        def run(*flags):
            commands.clear()
            model = ("--model_name", place / "llama", "--dtype", "float32", "--plant", place / "addresses.jsonl")
            patch.setattr(sys, "argv", ["demo_lm.py", *map(str, (*model, *FLAGS, *flags))])
            demo_lm.main()
            return json.loads((place / "results/demo_lm/summary.json").read_text())

        run.module, run.commands = demo_lm, commands
        yield run


@pytest.fixture(scope="module")
def summary(demo):
    return demo()


JUDGED = ["percent_memorized", "percent_near_verbatim", "percent_extractable", "auc_loss"]
ROW = ["method", "setting", *(f"{name}_{split}" for split in ("shown", "validation", "held_out") for name in JUDGED)]
ROW += ["perplexity", "seconds"]


def test_the_summary_has_a_row_for_every_method(demo, summary):
    rows = summary["rows"]
    assert all(list(row) == [*ROW, "peak_memory_gb"] for row in rows)
    found = list(dict.fromkeys(row["method"] for row in rows))
    ours = [name for name in STUDY if name not in demo.module.LEFT_OUT]
    assert found == ["never_planted", "unedited", *ours, "npo", "simnpo", "undial", "obliviate", "kfac", "kfade"]
    assert set(summary["left_out"]) == {"zero_out", "integrated_gradients"} and min(summary["left_out"].values()) >= 0
    assert len(rows) == len(found)
    tried = [(row["method"], row["setting"]) for row in rows + summary["trials"]]
    assert len(tried) == len(set(tried)) == 2 + 3 * (len(found) - 2) - 2  # BALANCED has one strength, not three


def test_the_strengths_are_chosen_by_the_validation_passages(summary):
    limit = 1.1 * summary["rows"][1]["perplexity"]
    for row in summary["rows"][2:]:
        trials = [one for one in summary["trials"] if one["method"] == row["method"]]
        within = [one for one in (row, *trials) if one["perplexity"] is not None and one["perplexity"] <= limit]
        if row not in within:
            assert not within
        elif row["percent_memorized_shown"] < 100:  # one without any effect is chosen only if all are
            effective = [one for one in within if one["percent_memorized_shown"] < 99]
            fewest = min(one["percent_memorized_validation"] for one in effective)
            assert row["percent_memorized_validation"] == fewest


def test_memories_were_planted_and_then_unlearned(summary):
    rows = {row["method"]: row for row in summary["rows"]}
    assert rows["never_planted"]["percent_memorized_shown"] == 0
    for name in ("percent_near_verbatim_held_out", "percent_extractable_held_out", "auc_loss_held_out"):
        assert rows["never_planted"][name] < rows["unedited"][name]
    assert rows["unedited"]["percent_memorized_shown"] == 100  # shown and held out are of what is memorized
    assert rows["unedited"]["percent_memorized_held_out"] == 100
    assert rows["balanced_subnet"]["percent_memorized_shown"] < 100
    assert summary["planting"]["epochs"] > 0
    passage = summary["passage"]
    assert passage["planted"] == passage["the passage goes on"] != passage["never planted"]


def test_the_table_comes_from_records_kept_beside_it(place, summary):
    records = [shown_row(record) for record in load_records(place / "results/demo_lm")]
    assert len(records) == len(summary["rows"] + summary["trials"])
    names = ["method", *ROW[2:], "peak_memory_gb"]
    assert all(
        {name: row[name] for name in names} in [{n: one.get(n) for n in names} for one in records]
        for row in summary["rows"] + summary["trials"]
    )
    assert (place / "results/demo_lm/demo_lm.png").stat().st_size > 5000
    assert (place / "results/demo_lm/demo_lm.pdf").stat().st_size > 5000
    page = (place / "results/demo_lm/page.html").read_text(encoding="utf-8")
    assert all(
        re.search(rf'<th[^>]*scope="col"[^>]*>\s*(<[^>]*>)?{state}\b', page) for state in ("before", "after", "twin")
    )
    assert (place / "results/demo_lm/page.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.nightly
def test_again_it_trains_nothing_and_says_the_same(place, demo, summary, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in [*place.glob("data/models/*"), *place.glob("runs/*/records/*")]}
    monkeypatch.setattr("tinymem.training.plant.plant", lambda *arguments, **more: pytest.fail("planted again"))
    again = demo()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again["rows"] == summary["rows"] and again["passage"] == summary["passage"]
    assert all(command.startswith("src/localize/prod_grad.py --model_name") for command in demo.commands)


def test_planting_goes_on_where_it_was_stopped(place, demo, monkeypatch, capsys):
    asked = iter([False] * 10 + [True] + [False] * 1000)
    monkeypatch.setattr("tinymem.cli.interruptible", lambda: nullcontext(lambda: next(asked)))
    flags = ("--model_name", place / "llama", "--plant", place / "addresses.jsonl", *FLAGS, "--plant_seed", 1)
    command = ("src/localize/prod_grad.py", *flags, *BALANCED.split(), "--output_dir", place / "stopped")
    with pytest.raises(SystemExit) as ended:
        in_process(*command)
    assert ended.value.code == 130 and "run the same command again to resume" in capsys.readouterr().err
    (state,) = place.glob("data/models/*.state.safetensors")
    assert not load_records(place / "stopped")
    in_process(*command)
    assert not state.exists() and state.with_name(state.name.removesuffix(".state.safetensors")).is_dir()
    records = {shown_row(record)["method"]: record for record in load_records(place / "stopped")}
    assert set(records) == {"never_planted", "unedited", "balanced_subnet"}
    for record in records.values():
        assert record["data"]["plant_seed"] == 1 and record["training"]["plant_percent"] == 95


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--plant_lr", 0], "--plant_lr 0.0: must be in (0.0, 1000.0]"),
        (["--plant_sequences", 5000], "addresses.jsonl holds only"),
        (["--plant_tokens", 12], "--plant_tokens 12: prompt and continuation need 18"),
        (["--plant", "nowhere.txt"], "--plant nowhere.txt: no such file or folder"),
        (["--corpus", "builtin"], "--corpus: leave it out with --plant"),
    ],
)
def test_bad_input(demo, capsys, flags, message):
    with pytest.raises((SystemExit, UserError)) as error:
        demo(*flags)
    assert message in capsys.readouterr().err + str(error.value)
