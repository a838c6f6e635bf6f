"""The models of the leaderboard."""

from tinymem.leaderboard.cases import with_evidence
from tinymem.records.bundle import NAME


def test_models_with_evidence_stand_in_the_leaderboards_order(tmp_path):
    for name in ("zebra", "text", "smollm2", "noise", "aardvark", "backdoor"):
        (tmp_path / name).mkdir()
        if name != "backdoor":
            (tmp_path / name / NAME).touch()
    assert with_evidence(tmp_path) == ["noise", "text", "smollm2", "aardvark", "zebra"]
