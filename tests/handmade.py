"""Records made by hand: what the scripts write, with numbers that can be checked on paper."""

from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.records.record import Cost, write_record

DATA = {"data_name": "increment", "artifact": "backdoor"}
TEXT = {"data_name": "wiki_fast", "artifact": "noise"}


def outcome(memorized: float | None, accuracy: float | None = 0.9, perplexity: float | None = 2.0, **more) -> dict:
    """Results of a run."""
    names = ("percent_memorized_train", "mean_test_accuracy", "perplexity")
    return {**dict(zip(names, (memorized, accuracy, perplexity))), "percent_zeroed": 1.0, **more}


def checkpoint(seed: int = 0, layers: int = 2, **changes: Any) -> dict:
    """The settings that an unlearning run shares with the record of its unedited model."""
    identity = {"run": "unlearn", **DATA, "seed": seed, "n_layers": layers, "epoch": 50, **changes}
    identity["training_epochs"], identity["training_lr"] = 50, 1e-3
    return identity | {"unlearn_seed": 0, "weights": f"w{files.digest(identity)}", "task": f"t{files.digest(identity)}"}


def unlearning(folder: Path, identity: dict, runs: dict[tuple, dict], seconds: float = 1.0) -> None:
    """Writes the records of runs on one checkpoint. runs: (method, hyper-parameters as pairs ...) -> results."""
    for (method, *pairs), results in runs.items():
        settings = {**identity, "method": method, **dict(pairs)}
        write_record(folder, settings, results, Cost(seconds, 0.5), "cpu")


def training(folder: Path, settings: dict, rows: list[dict], epoch_seconds: list[float] | None = None) -> None:
    """Writes the record and the metrics.json of a training or fine-tuning run."""
    tuned = settings["run"] == "finetune"
    results = {name: value for name, value in rows[-1].items() if not tuned or name != "epoch"}
    write_record(folder, settings, results | ({"epoch_seconds": epoch_seconds} if tuned else {}), Cost(9.0, 1.0), "cpu")
    files.write_json(folder / "metrics.json", rows)


def everything(folder: Path) -> Path:
    """A small study: two model sizes, two seeds, a regularizer, fine-tuning, unlearning, text, a production model."""
    for layers in (2, 4):
        for seed in (0, 1):
            run = folder / f"plain_{layers}_{seed}"
            flat = {**DATA, "seed": seed, "n_layers": layers, "epochs": 2, "lr": 1e-3, "l2_reg": 0.1}
            rows = [{"epoch": epoch, **outcome(40.0 * epoch + seed, 0.9 + 0.01 * epoch)} for epoch in (1, 2)]
            training(run, {"run": "train", **flat}, rows)
            switched = {"spectral_reg": True, "lam": 0.01}
            training(folder / f"spectral_{layers}_{seed}", {"run": "train", **flat, **switched}, rows)
            for data, spent in (("clean", 1.0), ("extra", 10.0), ("both", 11.0)):
                after = [{"epoch": epoch, **outcome(80.0 - 20 * epoch)} for epoch in range(3)]
                settings = {
                    "run": "finetune",
                    **flat,
                    "epoch": 2,
                    "ft_data": data,
                    "ft_epochs": 2,
                    "weights": f"w{seed}",
                }
                training(run / data, settings, after, [spent, spent])
            runs = {("unedited",): outcome(80.0 + seed)}
            for ratio in (0.1, 0.3):
                runs["durable", ("ratio", ratio)] = outcome(80 - 100 * ratio, 0.88 - ratio / 10)
                runs["slimming", ("ratio", ratio), ("epochs", 3)] = outcome(60.0, 0.89)
            unlearning(run / "unlearned", checkpoint(seed, layers), runs)
    passages = {("unedited",): outcome(16.0, None, 70.0), ("obs", ("ratio", 0.1)): outcome(4.0, None, 73.5)}
    unlearning(folder / "text", checkpoint(**TEXT), passages)
    for step in (36000, 143000):
        identity = {"run": "unlearn", "model_name": "pythia-160m", "step": step, "unlearn_seed": 0}
        unlearning(folder / f"pythia_{step}", identity, passages)
    return folder
