import pytest
import torch
from known_rows import PAD, artifacts, free_run, known_in_part, successor, windows

from tinymem.metrics.metric import as_values
from tinymem.metrics.probe import Probe
from tinymem.metrics.verbatim import (
    LONGEST_MATCH,
    LONGEST_MATCH_P95,
    exact_match_shares,
    extraction_strengths,
    longest_matches,
)


def test_by_hand():
    # The model counts up from the token before, so that x y is right where y = x + 1.
    rows = artifacts([[0, 1, 2, 3, 4], [0, 1, 2, 4, 5], [0, 9, 1, 2, 4], [0, 5, 5, 5, 5], [0, 1, 2, PAD, PAD],
                      [0, PAD, PAD, PAD, PAD]], [1] * 6)  # fmt: skip
    probe = Probe(successor(), 4, pad=PAD)
    shares, strengths, matches = (f(probe, rows) for f in (exact_match_shares, extraction_strengths, longest_matches))
    assert shares[:5].tolist() == [1, 0.75, 0.25, 0, 1]
    assert strengths[:5].tolist() == [1, 0.25, 0, 0, 1]  # the last token wrong: 0, not 1/4
    assert matches[:5].tolist() == [4, 2, 0, 0, 2]
    assert shares[5].isnan() and strengths[5].isnan() and matches[5].isnan()  # no token, no value
    assert LONGEST_MATCH.summary(as_values(matches)) == 2
    assert LONGEST_MATCH_P95.summary(as_values(matches)) == pytest.approx(2 + 0.8 * 2)  # 0 0 2 2 4, place 3.8
    for metric in (LONGEST_MATCH, LONGEST_MATCH_P95):
        assert metric.summary(as_values(matches[5:])) is None


def test_against_free_running_generation():
    """Each value follows from greedy decoding after the prompt and the first j true tokens, j = 0, 1, 2 ..."""
    probe, rows = known_in_part()
    found = [f(probe, rows).tolist() for f in (exact_match_shares, extraction_strengths, longest_matches)]
    for number, (prompt, _, tokens) in enumerate(windows(probe, rows)[:-1]):
        written = [free_run(probe.model, prompt + tokens[:given], len(tokens) - given) for given in range(len(tokens))]
        share = sum(text[0] == token for text, token in zip(written, tokens)) / len(tokens)
        given = next((j for j, text in enumerate(written) if text == tokens[j:]), len(tokens))
        match = next((j for j, pair in enumerate(zip(written[0], tokens)) if pair[0] != pair[1]), len(tokens))
        assert [values[number] for values in found] == [share, (len(tokens) - given) / len(tokens), match]
    assert 0 < sum(found[1][:-1]) < 39 and len({*found[2][:-1]}) > 3


def test_what_bounds_what():
    probe, rows = known_in_part(200, seed=1)
    share, strength, match = (f(probe, rows)[:-1] for f in (exact_match_shares, extraction_strengths, longest_matches))
    length = probe.real_targets(rows)[1].sum(1)[:-1]
    assert (strength <= share).all() and (match / length <= share).all()
    assert torch.equal(strength == 1, share == 1) and torch.equal(match == length, share == 1)
