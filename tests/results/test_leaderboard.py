"""The committed leaderboard is what its committed records say."""

import shutil

import pytest
from small import ROOT

from tinymem.leaderboard import report
from tinymem.leaderboard.cases import with_evidence

FOLDER = ROOT / "results" / "leaderboard"
MODELS = with_evidence(FOLDER)


@pytest.mark.slow
@pytest.mark.skipif(not MODELS, reason="no leaderboard is committed")
def test_every_table_and_page_is_computed_from_the_records_again(tmp_path):
    for name in MODELS:
        shutil.copytree(FOLDER / name, tmp_path / name)
    report.write(tmp_path, MODELS)
    made = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert made == ["ATTACKS.md", "LEADERBOARD.md", "index.html", "leaderboard.csv"]
    for name in made:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name
