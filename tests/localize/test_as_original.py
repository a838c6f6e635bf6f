"""What measure.py says of a model without --edit_of, and what records of natural passages say of their repetition."""

import pytest

from tinymem import files
from tinymem.data.settings import DataSettings
from tinymem.localize.measure import as_original


def test_without_an_original_a_model_counts_as_unedited(tmp_path):
    said = as_original(str(tmp_path))
    assert said.startswith(f"{tmp_path}: counts as unedited") and "--edit_of ORIGINAL" in said and "\n" not in said


@pytest.mark.parametrize(
    ("made_by", "known"), [({"kind": "unlearn", "method": {"name": "obs"}}, True), ({"kind": "train"}, False)]
)
def test_a_folder_that_is_known_to_be_an_edit_is_said(tmp_path, made_by, known):
    files.write_json(tmp_path / "tinymem.json", {"settings": {}, "made_by": made_by})
    assert (": was made by obs, but counts as unedited" in as_original(str(tmp_path))) == known


@pytest.mark.parametrize(
    ("artifact", "asked", "kept"), [("natural", False, True), ("noise", False, False), ("noise", True, True)]
)
def test_natural_passages_are_repeated_and_say_so(artifact, asked, kept):
    settings = DataSettings(data_name="wiki_fast", artifact=artifact, duplicate=asked)
    assert settings.duplicate == settings.applicable()["duplicate"] == kept
