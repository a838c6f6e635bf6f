"""Small data, a small model that really memorizes, and scripts run as a user runs them."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from tinymem.data.build import build_dataset
from tinymem.data.settings import DataSettings
from tinymem.models.tinymem import ModelSettings, load_model, new_model
from tinymem.training.settings import RunSettings, TrainingSettings
from tinymem.training.train import train

ROOT = Path(__file__).parent.parent

SMALL_DATA = dict(
    num_7=100, num_2=20, num_3=20, num_4=20, num_5=20, num_test=10, num_noise=9, length=6, max_ctx=30,
    prompt_tokens=10, continuation_tokens=10, duplicate=True,
)  # fmt: skip

SMALL_BACKDOOR = dict(artifact="backdoor", num_7=250, length=12, max_ctx=56)  # 250: enough sequences reach the trigger


def small_settings(**data) -> RunSettings:
    """Settings of a run that takes seconds."""
    return RunSettings(
        data=DataSettings(**{**SMALL_DATA, **data}),
        model=ModelSettings(n_layers=2, n_embd=32, n_heads=2),
        training=TrainingSettings(epochs=6, checkpoint_every=6, batch_size=32, lr=4e-3),
    )


def train_small(settings: RunSettings, folder: Path) -> SimpleNamespace:
    """Trains in `folder`; returns settings, dataset, model, checkpoint."""
    dataset = build_dataset(settings.data)
    specials = dict(bos_token_id=dataset.bos, eos_token_id=dataset.eos, pad_token_id=dataset.pad)
    model = new_model(settings.model, dataset.vocabulary_size, settings.data.max_ctx, settings.data.seed, **specials)
    train(model, dataset, settings.training, settings.data.seed, folder, {"settings": settings.flat()})
    checkpoint = folder / f"epoch_{settings.training.epochs}"
    return SimpleNamespace(settings=settings, dataset=dataset, model=load_model(checkpoint), checkpoint=checkpoint)


def start(*arguments: object, cwd: Path | None = None) -> subprocess.Popen:
    """Starts a script of the repository in a process of its own, as a user does; on one thread, so that bytes agree."""
    command = [sys.executable, str(ROOT / str(arguments[0])), *map(str, arguments[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd or ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def script(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The same, to its end."""
    process = start(*arguments, cwd=cwd)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def in_process(name: str, *arguments: object) -> None:
    """Runs a script of the repository in this process, which has loaded torch already."""
    before, sys.argv = sys.argv, [str(ROOT / name), *map(str, arguments)]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before
