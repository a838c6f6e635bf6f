import pytest
import torch
from known_rows import PAD, artifacts, free_run, successor

from tinymem.errors import UserError
from tinymem.metrics.counterfactual import counterfactual, saved_scores
from tinymem.metrics.evaluate import measure
from tinymem.metrics.metric import mean
from tinymem.metrics.neighbours import NEIGHBOUR_ACCURACY, clean_hits
from tinymem.metrics.probe import Probe


def test_accuracy_on_the_clean_continuation_by_hand():
    rows = artifacts([[0, 9, 9, 9]] * 3, [1] * 3, clean=[[0, 1, 2, 3], [0, 1, 5, PAD], [0, PAD, PAD, PAD]])
    found = clean_hits(Probe(successor(), 3, pad=PAD), rows)
    assert found.sums.tolist() == [3, 1, 0] and found.weights.tolist() == [3, 2, 0]
    assert mean(found) == 4 / 5  # of tokens


def test_accuracy_against_decoding_step_by_step(memorizing_backdoor):
    model, dataset = memorizing_backdoor.model, memorizing_backdoor.dataset
    found = measure(model, dataset, metrics=["neighbour_accuracy"])
    rows = dataset.never_planted.select(dataset.measured(dataset.never_planted))
    hits = tokens = 0
    for clean, end in zip(rows.clean.tolist(), rows.prompt_end.tolist()):
        for place in range(end, min(end + dataset.continuation, len(clean))):
            if clean[place] != dataset.pad:
                hits, tokens = hits + (free_run(model, clean[:place], 1) == [clean[place]]), tokens + 1
    assert tokens and found.row == {"neighbour_accuracy": hits / tokens} and NEIGHBOUR_ACCURACY.better == "higher"


def test_counterfactual_memorization_by_hand():
    planted = torch.tensor([[1.0, 0.5, torch.nan], [0.5, 0.5, torch.nan]])
    twins = torch.tensor([[0.25, 0.5, 0.0], [torch.nan, 0.0, 0.0], [0.25, 0.1, 0.0]])
    found = counterfactual(planted, twins)
    assert found[:2].tolist() == pytest.approx([0.75 - 0.25, 0.5 - 0.2]) and found[2].isnan()
    with pytest.raises(UserError, match="scores of 3 and 2 rows"):
        counterfactual(planted, twins[:, :2])


def test_counterfactual_memorization_from_what_records_keep(memorizing_noise, memorizing_backdoor):
    model, dataset = memorizing_noise.model, memorizing_noise.dataset
    kept = measure(model, dataset, metrics=["exact_match_share", "neighbour_accuracy"]).tensors()
    scores = saved_scores([kept, kept], "exact_match_share_train")
    assert scores.shape[0] == 2 and counterfactual(scores, scores[:1]).eq(0).all()
    assert scores[0].mean().item() == pytest.approx(measure(model, dataset, metrics=["exact_match_share"]).row[
        "exact_match_share_train"])  # fmt: skip
    weighted = saved_scores([kept], "neighbour_accuracy")
    assert weighted.min() >= 0 and weighted.max() <= 1
    with pytest.raises(UserError, match="percent_copied_train: record 1 keeps no values of it; measure it first"):
        saved_scores([kept], "percent_copied_train")
    other = measure(memorizing_backdoor.model, memorizing_backdoor.dataset, metrics=["exact_match_share"]).tensors()
    with pytest.raises(UserError, match="the records are of"):
        saved_scores([kept, other], "exact_match_share_train")
