"""The model that comes with the repository is the one that its record and README describe."""

from pathlib import Path

import pytest
from small import ROOT

from tinymem.data.build import load_dataset
from tinymem.metrics.evaluate import evaluate
from tinymem.models.tinymem import load_model
from tinymem.records.record import record_path
from tinymem.records.table import load_records
from tinymem.training.checkpoint import STATE, load_details, place_beside
from tinymem.training.settings import RunSettings

NAME = "increment_backdoor_2layers"
MODEL = ROOT / "results" / "models" / NAME


def test_it_measures_what_its_record_says():
    (record,) = load_records(MODEL)
    details = load_details(MODEL)
    assert record_path(MODEL, record["settings"]).exists()  # under the name that its settings give
    assert {"run": "train", **details["settings"]} == record["settings"] and details["epoch"] == 7
    measured = evaluate(load_model(MODEL), load_dataset(RunSettings.from_flat(details["settings"]).data, None))
    # Loose enough for another processor's last bits, which may tip a sequence over.
    for name in ("mean_test_accuracy", "perplexity"):
        assert measured[name] == pytest.approx(record["results"][name], rel=1e-3)
    for name in ("percent_memorized_train", "percent_memorized_test"):
        assert measured[name] == pytest.approx(record["results"][name], abs=6)
    assert f"{record['results']['percent_memorized_train']:.1f} %" in (MODEL.parent / "README.md").read_text()


def test_its_readme_gives_the_command_of_the_demo():
    demo = (ROOT / "experiments" / "demo.py").read_text()
    command = (
        demo[demo.index('TRAIN = f"""') + 12 :].split('"""')[0].replace("{EPOCHS}", "7").replace("{RUN}", "runs/demo")
    )
    readme = (MODEL.parent / "README.md").read_text().replace("\\\n", " ")
    assert " ".join(command.split()) in " ".join(readme.split())


def test_it_is_small_and_nothing_is_written_beside_it(memorizing_backdoor):
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2e6 and STATE not in {path.name for path in files}
    assert place_beside(MODEL) == Path("runs") / NAME
    assert place_beside(memorizing_backdoor.checkpoint) == memorizing_backdoor.checkpoint.parent
