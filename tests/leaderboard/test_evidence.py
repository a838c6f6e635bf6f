"""What the evidence of a leaderboard keeps when runs add to it."""

import pytest
import torch
from boards import TWIN_MODEL, UNEDITED_MODEL, identities, recorded

from tinymem import files
from tinymem.errors import UserError
from tinymem.leaderboard.cases import find_cases
from tinymem.leaderboard.evidence import Evidence, gather
from tinymem.records.identity import NEVER_PLANTED, UNEDITED, record_digest
from tinymem.records.record import record_path, write_values

(NOISE,) = find_cases(["noise"], True, 3)
EXACT, TOKENS = "percent_memorized_held_out", "exact_match_share_held_out"


@pytest.fixture
def earlier():
    """The evidence of an unedited model, its twin, and the attacks on both."""
    known, records, values = identities(NOISE, 0), [], {}
    for kind, model in ((UNEDITED, UNEDITED_MODEL), (NEVER_PLANTED, TWIN_MODEL)):
        for record, kept in recorded(NOISE, known[kind, 0], model):
            records.append(record)
            values[record_digest(record)] = kept
    return Evidence(tuple(records), values, {})


def added(folder, evidence, results, values):
    """Writes into a folder what a run leaves that adds to restored records: all results, only its own values."""
    record = evidence.unedited(0)
    for each in (record, *evidence.attacks_on(record)):
        files.write_json(record_path(folder, each), each)
    path = record_path(folder, record)
    files.write_json(path, {**record, "results": {**record["results"], **results}})
    write_values(path, values)
    return record_digest(record)


def test_a_restored_record_that_gains_a_metric_keeps_the_values_of_the_others(earlier, tmp_path):
    digest = added(tmp_path, earlier, {TOKENS: 0.5}, {TOKENS: torch.tensor([1.0, 0.0])})
    found = gather([tmp_path], None, {}, earlier)
    assert found.values[digest].keys() == earlier.values[digest].keys() | {TOKENS}
    assert found.values[digest][EXACT].equal(earlier.values[digest][EXACT])


def test_a_column_that_is_measured_again_keeps_no_weights_of_before(earlier, tmp_path):
    """Two of three sequences counted; now all four of them do."""
    of_unedited = earlier.values[record_digest(earlier.unedited(0))]
    of_unedited |= {EXACT: torch.tensor([100.0, 100, 0, 0]), f"{EXACT}.weights": torch.tensor([1, 1, 1, 0])}
    digest = added(tmp_path, earlier, {EXACT: 50.0}, {EXACT: torch.tensor([1.0, 1, 0, 0])})
    found = gather([tmp_path], None, {}, earlier)
    assert f"{EXACT}.weights" not in found.values[digest] and found.rows(found.unedited(0), EXACT).sums.sum() == 200


@pytest.mark.parametrize("folder", ["", "below"])
def test_values_are_found_beside_their_record(folder, earlier, tmp_path):
    digest = added(tmp_path / folder, earlier, {TOKENS: 0.5}, {TOKENS: torch.tensor([1.0, 0.0])})
    assert TOKENS in gather([tmp_path], None, {}, earlier).values[digest]


def test_evidence_that_could_not_be_read_again_is_refused_before_it_is_written(earlier, tmp_path):
    digest = added(tmp_path, earlier, {TOKENS: 0.5}, {EXACT: torch.tensor([1.0] * 4)})
    said = f"^{record_path(tmp_path, earlier.unedited(0))}: no values for {TOKENS} of record {digest}; delete this file"
    with pytest.raises(UserError, match=said):
        gather([tmp_path], None, {}, earlier)
