"""Records made by hand: what the scripts write, with numbers that can be checked on paper."""

import runpy
import sys
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.records.cost import Cost
from tinymem.records.identity import UNEDITED, record_digest
from tinymem.records.record import write_record

DATA = {"data_name": "increment", "artifact": "backdoor"}
TEXT = {"data_name": "wiki_fast", "artifact": "noise"}


def outcome(memorized: float | None, accuracy: float | None = 0.9, perplexity: float | None = 2.0, **more) -> dict:
    """Results of a run."""
    names = ("percent_memorized_train", "mean_test_accuracy", "perplexity")
    return {**dict(zip(names, (memorized, accuracy, perplexity))), "percent_zeroed": 1.0, **more}


def checkpoint(seed: int = 0, layers: int = 2, **data: Any) -> dict:
    """The sections that an unlearning run shares with the record of its unedited model."""
    identity = {
        "data": {**DATA, "seed": seed, **data},
        "model": {"n_layers": layers},
        "training": {"lr": 1e-3, "epoch": 50},
        "forget": {"unlearn_seed": 0},
    }
    name = files.digest(identity)
    return {**identity, "fingerprints": {"weights": f"w{name}", "forget_set": f"f{name}"}}


def production(name: str = "pythia", step: int = 9, **data: Any) -> dict:
    """The same of a production model."""
    return {"data": data, "model": {"name": name, "step": step}, "forget": {"unlearn_seed": 0}}


def edited(identity: dict, method: str, **settings: Any) -> dict:
    """The identity of an unlearning run, or of the unedited or never planted model where that is the method."""
    if method in ("unedited", "never_planted"):
        return {"kind": method, **identity}
    parent = record_digest({"kind": UNEDITED, **identity})
    return {"kind": "unlearn", "parent": parent, **identity, "method": {"name": method, **settings}}


def attacked(identity: dict, **attack: Any) -> dict:
    """The identity of an attack on the model of another record."""
    return {**identity, "kind": "attack", "parent": record_digest(identity), "attack": {"name": "int8", **attack}}


def unlearning(folder: Path, identity: dict, runs: dict[tuple, dict], seconds: float | None = 1.0) -> None:
    """Writes the records of runs on one checkpoint. runs: (method, hyper-parameters as pairs ...) -> results."""
    for (method, *pairs), results in runs.items():
        write_record(folder, edited(identity, method, **dict(pairs)), results, Cost(seconds, 0.5), "cpu")


def trained(seed: int = 0, layers: int = 2, epochs: int = 2, data: dict = DATA, **training: Any) -> dict:
    """The identity of a training run."""
    training = {"epochs": epochs, "lr": 1e-3, "l2_reg": 0.1, **training}
    return {"kind": "train", "data": {**data, "seed": seed}, "model": {"n_layers": layers}, "training": training}


def finetuned(name: str, seed: int = 0, layers: int = 2) -> dict:
    """The identity of a fine-tuning of such a run."""
    identity = trained(seed, layers, epoch=2)
    del identity["training"]["epochs"]
    method = {"name": name, "ft_epochs": 2}
    return {**identity, "kind": "finetune", "method": method, "fingerprints": {"weights": f"w{seed}"}}


def training(folder: Path, identity: dict, rows: list[dict], epoch_seconds: list[float] | None = None) -> None:
    """Writes the record and the metrics.json of a training or fine-tuning run."""
    tuned = identity["kind"] == "finetune"
    results = {name: value for name, value in rows[-1].items() if not tuned or name != "epoch"}
    write_record(folder, identity, results | ({"epoch_seconds": epoch_seconds} if tuned else {}), Cost(9.0, 1.0), "cpu")
    files.write_json(folder / "metrics.json", rows)


def everything(folder: Path) -> Path:
    """A small study: two model sizes, two seeds, a regularizer, fine-tuning, unlearning, text, a production model."""
    for layers in (2, 4):
        for seed in (0, 1):
            run = folder / f"plain_{layers}_{seed}"
            rows = [{"epoch": epoch, **outcome(40.0 * epoch + seed, 0.9 + 0.01 * epoch)} for epoch in (1, 2)]
            training(run, trained(seed, layers), rows)
            training(folder / f"spectral_{layers}_{seed}", trained(seed, layers, spectral_reg=True, lam=0.01), rows)
            for data, spent in (("clean", 1.0), ("extra", 10.0), ("both", 11.0)):
                after = [{"epoch": epoch, **outcome(80.0 - 20 * epoch)} for epoch in range(3)]
                training(run / data, finetuned(data, seed, layers), after, [spent, spent])
            runs = {("unedited",): outcome(80.0 + seed)}
            for ratio in (0.1, 0.3):
                runs["durable", ("ratio", ratio)] = outcome(80 - 100 * ratio, 0.88 - ratio / 10)
                runs["slimming", ("ratio", ratio), ("epochs", 3)] = outcome(60.0, 0.89)
            unlearning(run / "unlearned", checkpoint(seed, layers), runs)
    passages = {("unedited",): outcome(16.0, None, 70.0), ("obs", ("ratio", 0.1)): outcome(4.0, None, 73.5)}
    unlearning(folder / "text", checkpoint(**TEXT), passages)
    for step in (36000, 143000):
        unlearning(folder / f"pythia_{step}", production("pythia-160m", step), passages)
    return folder


def command(*words: object) -> int:
    """python -m tinymem.records, in this process. Returns the exit code."""
    before, sys.argv = sys.argv, ["records", *map(str, words)]
    try:
        runpy.run_module("tinymem.records", run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    return 0
