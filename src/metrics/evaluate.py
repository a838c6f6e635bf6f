"""Every metric of a model on a dataset, as one flat row of a results table."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.metrics.memorization import percent, recovered, remembering
from tinymem.metrics.quality import Quality, quality

Row = dict[str, float | None]
Check = Callable[[Artifacts], "torch.Tensor"]
STUDY_BATCH_SIZE = 128  # perplexity_batch_mean depends on it; for TinyMem


def evaluate(
    model,
    dataset: MemorizationDataset,
    batch_size: int = 64,
    study_batch_size: int = STUDY_BATCH_SIZE,
    check: Check | None = None,
) -> Row:
    """Memorization and quality. Leaves the model in the mode it was in; runs in the precision of its weights.

    check: artifacts -> flags, in place of `memorized`, from a caller who asks for more (`remembering`).

    Keys, percentages from 0 to 100:
      percent_memorized_train     artifacts in the training set; lower is better after unlearning
      percent_memorized_dup_R     those repeated R times (where artifacts are duplicated)
      percent_memorized_test      backdoor triggers never trained on (None for noise)
      percent_clean_recovery      artifacts that continue as their clean twin; higher is better (None for natural
                                  passages, which have no other twin)
      accuracy_NAME, loss_NAME    per test set, 0 to 1 and nats
      mean_test_accuracy, mean_test_accuracy_no_pad    mean over the test sets; higher is better
      perplexity, perplexity_batch_mean                over all test sets together; lower is better. The latter is
                                  the mean over batches of `study_batch_size`, while `batch_size` changes nothing
    """
    was_training = model.training
    model.eval()
    try:
        return {
            **memorization_row(model, dataset, batch_size, check),
            **quality_row(model, dataset, batch_size, study_batch_size),
        }
    finally:
        model.train(was_training)


def memorization_row(model, dataset: MemorizationDataset, batch_size: int = 64, check: Check | None = None) -> Row:
    """The memorization part of `evaluate`."""
    check = check or remembering(model, dataset.continuation, batch_size, dataset.ignored_token)
    train = dataset.artifacts.select(dataset.measured(dataset.artifacts))
    test = dataset.test_artifacts.select(dataset.measured(dataset.test_artifacts))
    flags = check(train)
    row: Row = {"percent_memorized_train": percent(flags)}
    if int(dataset.artifacts.group.max()) > 0:
        for group in train.group.unique().tolist():
            row[f"percent_memorized_dup_{10**group}"] = percent(flags[train.group == group])
    row["percent_memorized_test"] = percent(check(test))
    natural = dataset.kind == "natural"
    row["percent_clean_recovery"] = (
        None if natural else percent(recovered(model, train, dataset.continuation, batch_size, dataset.ignored_token))
    )
    return row


def quality_row(
    model, dataset: MemorizationDataset, batch_size: int = 64, study_batch_size: int = STUDY_BATCH_SIZE
) -> Row:
    """The quality part of `evaluate`."""
    tests = {
        name: quality(model, tokens, dataset.pad, dataset.pad_counts, batch_size)
        for name, tokens in dataset.tests.items()
    }
    row: Row = {}
    for name, result in tests.items():
        row |= {f"accuracy_{name}": result.accuracy, f"loss_{name}": result.mean_loss}
    pooled = Quality(*(torch.cat([getattr(t, field) for t in tests.values()]) for field in Quality.__annotations__))
    row["mean_test_accuracy"] = sum(t.accuracy for t in tests.values()) / len(tests)
    row["mean_test_accuracy_no_pad"] = sum(t.accuracy_no_pad for t in tests.values()) / len(tests)
    row["perplexity"] = pooled.perplexity
    row["perplexity_batch_mean"] = pooled.perplexity_batch_mean(study_batch_size)
    return row
