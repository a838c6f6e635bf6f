"""What measure.py says of a model without --edit_of, and what records of natural passages say of their repetition."""

import pytest
from small import in_process, small_settings, train_small

from tinymem import files
from tinymem.data.settings import DataSettings
from tinymem.localize.measure import as_original
from tinymem.records.table import load_records


def test_without_an_original_a_model_counts_as_unedited(tmp_path):
    said = as_original(str(tmp_path))
    assert said.startswith(f"{tmp_path}: counts as unedited") and "--edit_of ORIGINAL" in said and "\n" not in said


@pytest.mark.parametrize(
    ("made_by", "known"), [({"kind": "unlearn", "method": {"name": "obs"}}, True), ({"kind": "train"}, False)]
)
def test_a_folder_that_is_known_to_be_an_edit_is_said(tmp_path, made_by, known):
    files.write_json(tmp_path / "tinymem.json", {"settings": {}, "made_by": made_by})
    assert (": was made by obs, but counts as unedited" in as_original(str(tmp_path))) == known


def test_an_original_that_has_memorized_nothing_leaves_nothing_to_attack(capsys, tmp_path):
    run = train_small(small_settings(num_noise=2, duplicate=False), tmp_path / "run")
    words = [
        run.checkpoint,
        "--edit_of",
        run.checkpoint,
        "--data_dir",
        tmp_path / "data",
        "--output_dir",
        tmp_path / "out",
    ]
    in_process("src/localize/measure.py", *words, "--attack", "relearn", "quantize")
    assert "no attacks: the model has not memorized anything of --unlearn_set_name mem" in capsys.readouterr().err
    assert sorted(record["kind"] for record in load_records(tmp_path / "out")) == ["measured", "unedited"]


@pytest.mark.parametrize(
    ("artifact", "asked", "kept"), [("natural", False, True), ("noise", False, False), ("noise", True, True)]
)
def test_natural_passages_are_repeated_and_say_so(artifact, asked, kept):
    settings = DataSettings(data_name="wiki_fast", artifact=artifact, duplicate=asked)
    assert settings.duplicate == settings.applicable()["duplicate"] == kept
