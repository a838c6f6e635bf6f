"""The models that come with the repository are those that their records and README describe."""

import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
from small import ROOT

from tinymem.data.build import load_dataset
from tinymem.metrics.evaluate import evaluate
from tinymem.models.tinymem import load_model
from tinymem.records.identity import sections_of
from tinymem.records.record import record_path
from tinymem.records.table import load_records
from tinymem.training.checkpoint import STATE, load_details, place_beside, unlearned_folder
from tinymem.training.settings import RunSettings
from tinymem.training.twin import check_twin, find_twin

MODELS = ROOT / "results" / "models"
EPOCHS = {
    "increment_backdoor_2layers": 7,
    "increment_backdoor_2layers_twin": 7,
    "increment_backdoor_2layers_full": 50,
    "increment_backdoor_2layers_full_seed0": 50,
    "increment_backdoor_2layers_full_seed3": 50,
    "text_natural_2layers_twin": 4,
}

SMALL, FULL = ("increment_backdoor_2layers", "increment_backdoor_2layers_twin"), "increment_backdoor_2layers_full"
FULL_SIZE = (FULL, f"{FULL}_seed0", f"{FULL}_seed3")
TEXT = "text_natural_2layers_twin"


def test_every_model_is_tested():
    assert {path.name for path in MODELS.iterdir() if path.is_dir()} == set(EPOCHS)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in (TEXT, *FULL_SIZE))])
def test_it_measures_what_its_record_says(name):
    model = MODELS / name
    (record,) = load_records(model)
    details = load_details(model)
    assert record_path(model, record).exists()  # under the name that its identity gives
    assert (
        sections_of(record) == RunSettings.from_flat(details["settings"]).sections()
        and details["epoch"] == EPOCHS[name]
    )
    measured = evaluate(load_model(model), load_dataset(RunSettings.from_flat(details["settings"]).data, None))
    # Loose enough for another processor's last bits, which may tip a sequence over.
    for metric in ("mean_test_accuracy", "perplexity"):
        assert measured[metric] == pytest.approx(record["results"][metric], rel=1e-3)
    for metric in ("percent_memorized_train", "percent_memorized_test"):
        if measured[metric] is not None:  # of passages there are no unseen ones
            assert measured[metric] == pytest.approx(record["results"][metric], abs=6)
    readme = (MODELS / "README.md").read_text()
    (line,) = (line for line in readme.splitlines() if f"`records/{record_path(model, record).name}`" in line)
    assert f" | {record['results']['percent_memorized_train']:.1f} % | " in line


@pytest.mark.parametrize("demo, epochs, folder", [("demo.py", 7, "demo"), ("demo_text.py", 4, "demo_text")])
def test_the_readme_gives_the_command_of_the_demo(demo, epochs, folder):
    code = (ROOT / "experiments" / demo).read_text()
    command = code[code.index('TRAIN = f"""') + 12 :].split('"""')[0]
    command = command.replace("{EPOCHS}", str(epochs)).replace("{RUN}", f"runs/{folder}").split()
    if folder == "demo_text":  # only its twin is shipped
        command[command.index("runs/demo_text")] += "_twin"
    readme = (MODELS / "README.md").read_text().replace("\\\n", " ")
    assert " ".join(command) in " ".join(readme.split())


@pytest.mark.parametrize("name, script", [(SMALL[1], "demo"), (TEXT, "demo_text")])
def test_the_demos_train_what_these_are_the_twins_of(name, script, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.syspath_prepend(str(ROOT))
    demo, training = import_module(script), import_module("memorization_in_toy_models")
    assert ROOT / demo.TWIN == MODELS / name and f"--twin_model {demo.TWIN} " in " ".join(demo.UNLEARN.split())
    monkeypatch.setattr(sys, "argv", shlex.split(demo.TRAIN))
    _, settings = training.parse()
    assert check_twin(MODELS / name, settings, demo.EPOCHS) == MODELS / name


@pytest.mark.parametrize("name", EPOCHS)
def test_it_is_small_and_nothing_is_written_beside_it(name, memorizing_backdoor):
    files = [path for path in (MODELS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6 and STATE not in {path.name for path in files}
    assert place_beside(MODELS / name) == Path("runs") / name
    assert unlearned_folder(MODELS / name) == Path("runs") / name / "unlearned" / name
    assert place_beside(memorizing_backdoor.checkpoint) == memorizing_backdoor.checkpoint.parent


def test_the_twin_is_found_and_has_no_memory():
    path, epoch = MODELS / SMALL[0], EPOCHS[SMALL[0]]
    settings = RunSettings.from_flat(load_details(path)["settings"])
    assert find_twin(path, settings, epoch).samefile(MODELS / SMALL[1])
    planted, twin = (load_records(MODELS / name)[0]["results"] for name in SMALL)
    assert twin["percent_memorized_train"] == 0 < planted["percent_memorized_train"]
    assert abs(twin["mean_test_accuracy"] - planted["mean_test_accuracy"]) < 1e-3
