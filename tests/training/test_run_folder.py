"""A folder holds one run: what is asked of it must be that run, also where its run.json is lost."""

import json
from pathlib import Path

import pytest
from small import small_settings

from tinymem.cli.training import checked_folder, prepared_run
from tinymem.errors import UserError
from tinymem.training.finetune import FinetuneSettings

SETTINGS = small_settings()


def begun(folder: Path, checkpoint: bool, **more) -> Path:
    """The folder of a run without its run.json, with or without a checkpoint."""
    places = [folder, folder / "epoch_1"] if checkpoint else [folder]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / "state.safetensors").touch()
    details = {"settings": SETTINGS.flat(), "epoch": 1, **more}
    if checkpoint:
        (places[-1] / "tinymem.json").write_text(json.dumps(details))
    return folder


def check(folder: Path, settings: dict, force: bool = False) -> None:
    with checked_folder(folder, settings, force):
        pass


@pytest.mark.parametrize("flag, value", [("seed", 1), ("lr", 0.5), ("l1_reg", 0.1), ("run", "finetune")])
def test_a_run_whose_settings_are_lost_is_not_taken_for_another(tmp_path, flag, value):
    run = begun(tmp_path, checkpoint=True)
    check(run, {**SETTINGS.flat(), "epochs": 9})
    with pytest.raises(UserError, match=f"--{flag} {value}; give another --output_dir"):
        check(run, {**SETTINGS.flat(), flag: value})


def test_nor_is_a_finetuning(tmp_path):
    run = begun(tmp_path, checkpoint=True, finetuning={"ft_data": "clean", "ft_epochs": 5, "from_epoch": 6})
    check(run, FinetuneSettings("clean", 7).marker(SETTINGS, 6) | {"weights": "0"})
    for other in (
        FinetuneSettings("both").marker(SETTINGS, 6),
        FinetuneSettings("clean").marker(SETTINGS, 4),
        SETTINGS.flat(),
    ):
        with pytest.raises(UserError, match="give another --output_dir"):
            check(run, other)


def test_a_state_of_unknown_settings_is_not_resumed(tmp_path):
    run = begun(tmp_path, checkpoint=False)
    with pytest.raises(UserError, match="run.json is missing"):
        check(run, SETTINGS.flat())
    check(run, SETTINGS.flat(), force=True)


@pytest.mark.parametrize("force", [False, True])
def test_a_checkpoint_is_no_folder_for_another_run(tmp_path, force):
    """Its training state would be replaced."""
    place = begun(tmp_path, checkpoint=True) / "epoch_1"
    with pytest.raises(UserError, match="epoch_1: is a checkpoint; give another --output_dir$"):
        check(place, SETTINGS.flat(), force)


def test_lost_settings_are_written_again(tmp_path):
    run = begun(tmp_path, checkpoint=True)
    with prepared_run(run, SETTINGS.flat(), force=False):
        assert json.loads((run / "run.json").read_text()) == SETTINGS.flat() and (run / "epoch_1").exists()
