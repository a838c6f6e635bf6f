"""Compute what must never change unnoticed: masks and metrics of eleven methods, weights of two trainings.

    python tests/golden/compute.py > tests/golden/golden.json

Run by test_golden.py in a process of its own, whose environment makes the bits independent of the processor: one
thread, and kernels that every x86-64 machine of the last ten years has.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from small import SMALL_BACKDOOR, small_settings

from tinymem.data.build import build_dataset
from tinymem.localize.registry import STUDY
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.metrics.evaluate import evaluate
from tinymem.metrics.memorization import memorized, percent
from tinymem.models.edit import applied
from tinymem.models.tinymem import load_model, new_model
from tinymem.regularizers.registry import build_regularizers, switched_on
from tinymem.training.checkpoint import load_trained
from tinymem.training.settings import RunSettings
from tinymem.training.train import train

MODEL = ROOT / "results" / "models" / "increment_backdoor_2layers"
RATIOS = {"greedy": 0.0002}  # 0.05 for all others
QUICK = {
    "integrated_gradients": {"ig_steps": 2},
    # As published all its coefficients are equal but for rounding, so that processors rank them differently.
    "slimming": {"epochs": 10, "lambda_l1": 1.0},
    "hard_concrete": {"epochs": 3},
    "greedy": {"greedy_k": 20},
    "obs": {"num_grads": 8},
    "subnet": {"epochs": 3, "batch_size": 8, "dtype": "float32"},
    "balanced_subnet": {"epochs": 1, "batch_size": 16, "dtype": "float32"},
}


def sha256(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(str(tuple(tensors[name].shape)).encode())
        digest.update(tensors[name].detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def unlearning() -> dict[str, dict]:
    """Method -> SHA-256 of each of its masks, and the row of metrics of the edited model."""
    settings = RunSettings.from_flat(load_trained(MODEL)["settings"])
    dataset, model = build_dataset(settings.data), load_model(MODEL)
    dataset = smaller(dataset, 10)
    task = unlearning_task(model, dataset, TaskSettings(max_retain=48, microbatch=16, holdout_fraction=0.25))
    found = {}
    for name, method in STUDY.items():
        ratio = RATIOS.get(name, 0.05)
        hp = method.resolve(method.hyper_parameters(ratio=(ratio,), **QUICK.get(name, {})), model.num_parameters())
        ((_, edit),) = method.run(model, task, hp)
        with applied(model, edit):
            row = evaluate(model, dataset, 16)
            row["percent_memorized_shown"] = percent(memorized(model, task.shown, task.continuation))
            row["percent_memorized_held_out"] = percent(memorized(model, task.held_out, task.continuation))
        found[name] = {"masks": {key: sha256({key: mask}) for key, mask in sorted(edit.masks.items())}, "row": row}
    return found


def smaller(dataset, artifacts: int):
    """The dataset with its first artifacts of each kind and few test sequences, so that all methods take seconds."""
    from dataclasses import replace

    chosen = torch.arange(len(dataset.artifacts)) < artifacts
    return replace(
        dataset,
        artifacts=dataset.artifacts.select(chosen),
        artifact_ids=dataset.artifact_ids[chosen],
        test_artifacts=dataset.test_artifacts.select(torch.arange(len(dataset.test_artifacts)) < artifacts),
        tests={name: tokens[:10] for name, tokens in dataset.tests.items()},
        order=dataset.order[~torch.isin(dataset.order, dataset.artifact_ids[~chosen])],
    )


def training() -> dict[str, str]:
    """SHA-256 of the weights of a plain training and of one with a regularizer."""
    settings, found = small_settings(**SMALL_BACKDOOR), {}
    dataset = build_dataset(settings.data)
    specials = dict(bos_token_id=dataset.bos, eos_token_id=dataset.eos, pad_token_id=dataset.pad)
    for name, chosen in (("plain", {}), ("loss_truncation", {"truncate_loss": True, "truncation_window": 100})):
        model = new_model(settings.model, dataset.vocabulary_size, settings.data.max_ctx, 0, **specials)
        regularizers = build_regularizers(model, switched_on(chosen), 0)
        with tempfile.TemporaryDirectory() as folder:
            train(model, dataset, settings.training, 0, Path(folder), {"settings": {}}, regularizers)
        found[name] = sha256(model.state_dict())
    return found


if __name__ == "__main__":
    json.dump({"unlearning": unlearning(), "training": training()}, sys.stdout, indent=1)
