"""Metrics of a model on a dataset: one flat row of a results table, and the values of all examples."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from tinymem.data.dataset import Artifacts, MemorizationDataset, evenly_spaced
from tinymem.data.memories import apart_from
from tinymem.errors import UserError
from tinymem.metrics.elicitation import Elicitation
from tinymem.metrics.examples import example_tokens, sample
from tinymem.metrics.metric import ALL_TESTS, PLANTED, TEXTS, TYPICAL, Metric, Values, as_values
from tinymem.metrics.probe import STUDY_BATCH_SIZE, OnRows, Probe, silent
from tinymem.metrics.registry import chosen, find_metric
from tinymem.models.fingerprint import left_alone
from tinymem.plugins import own_code

if TYPE_CHECKING:
    from tinymem.metrics.reference import References

logger = logging.getLogger(__name__)
Row = dict[str, float | None]


@dataclass(frozen=True)
class Measurement:
    """The results of measuring: per column a figure (None: nothing to measure) and the values of its examples.

    texts: what the model writes after some prompts, as `metrics.examples.example_tokens` returns it
    """

    row: Row
    values: dict[str, Values]
    texts: dict[str, torch.Tensor] = field(default_factory=dict)

    def tensors(self, others: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Return the values for a file: COLUMN (sums), COLUMN.weights (left out if all 1), COLUMN.groups; and texts.

        others: what the file already holds; the columns here replace theirs.
        """
        earlier = {name for column in self.values for name in (column, f"{column}.weights", f"{column}.groups")}
        tensors = {name: tensor for name, tensor in (others or {}).items() if name not in earlier} | self.texts
        for column, values in self.values.items():
            tensors[column] = _packed(values.sums)
            if not values.weights.eq(1).all():
                tensors[f"{column}.weights"] = _packed(values.weights)
            if values.groups is not None:
                tensors[f"{column}.groups"] = _packed(values.groups)
        return tensors


def saved_values(tensors: Mapping[str, torch.Tensor], column: str) -> Values | None:
    """Return a column's values as `Measurement.tensors` gave them to a file; None where there are none."""
    if column not in tensors:
        return None
    sums = tensors[column].double()
    weights = tensors.get(f"{column}.weights", torch.ones_like(sums)).double()
    return Values(sums, weights, tensors.get(f"{column}.groups"))


def measure(
    model,
    dataset: MemorizationDataset,
    batch_size: int = 64,
    study_batch_size: int = STUDY_BATCH_SIZE,
    metrics: Iterable[str | Metric] | None = None,
    splits: Mapping[str, Artifacts] | None = None,
    references: References | None = None,
    examples: str | None = None,
    only: Iterable[str] | None = None,
    seen: Artifacts | None = None,
    elicited: Elicitation | None = None,
    on_rows: OnRows = silent,
) -> Measurement:
    """Measure memorization and quality, in the precision of the weights. Leave the model's mode unchanged.

    study_batch_size  batch size of `perplexity_batch_mean`; `batch_size` does not change results
    metrics           names or metrics, by default `registry.DEFAULTS`
    splits            further sets of planted sequences by name ("shown", "held_out" ...)
    references        what the model is compared with; without it, metrics that need it have no value
    examples          the split for which to keep what the model writes; None: none
    only              the sets of planted sequences to measure; None: all
    seen              sequences that an attacker has seen: they, and all that reveal them, are left out
    elicited          an attack on prompts: it replaces the values of its metrics and takes some of the sequences
    on_rows(pass, done, total)   called at the start of a pass and after every batch: the pass in words, its rows

    Raise UserError for an unknown metric, and if the model's outputs are not finite numbers.
    """
    wanted = chosen(metrics)
    sets = {**planted_splits(dataset), **(splits or {})}
    if only is not None:
        sets = {split: sets[split] for split in only if split in sets}
    if seen is not None:
        sets = {split: apart_from(dataset, artifacts, seen) for split, artifacts in sets.items()}
    if elicited is not None:
        wanted = [replace(metric, values=elicited.values[metric.name]) for metric in wanted]
        sets = {split: _spread(artifacts, elicited.sequences) for split, artifacts in sets.items()}
    needs = {need for metric in wanted for need in metric.needs}
    more = {"study_batch_size": study_batch_size, "references": references, "on_rows": on_rows}
    probe = Probe.of(model, dataset, batch_size, needs=needs, **more)
    columns = [
        (metric, metric.column(part), sequences)
        for metric in wanted
        for part, sequences in _parts(metric, sets, dataset)
    ]
    was_training = model.training
    model.eval()
    try:
        values = _all_values(probe, columns)
        texts = example_tokens(probe, sample(sets[examples]), examples) if examples else {}
    finally:
        model.train(was_training)
    return Measurement({column: _summary(metric, values[column]) for metric, column, _ in columns}, values, texts)


def averaged(found: Sequence[Measurement]) -> Measurement:
    """Return the mean of measurements of the same columns and sequences: of the figures, and of each example's values.

    A figure that one of them lacks is None. Texts are those of the first.
    """
    row: Row = {}
    for column in found[0].row:
        figures = [one.row[column] for one in found]
        known = [figure for figure in figures if figure is not None]
        row[column] = statistics.fmean(known) if len(known) == len(figures) else None
    values = {
        column: replace(
            first,
            sums=torch.stack([one.values[column].sums for one in found]).mean(0),
            weights=torch.stack([one.values[column].weights for one in found]).mean(0),
        )
        for column, first in found[0].values.items()
    }
    return Measurement(row, values, found[0].texts)


def evaluate(model, dataset: MemorizationDataset, *arguments, **more) -> Row:
    """Return only the row of `measure`. `registry.documented()` explains each column."""
    return measure(model, dataset, *arguments, **more).row


def planted_splits(dataset: MemorizationDataset) -> dict[str, Artifacts]:
    """Return the dataset's sets of planted sequences: train, dup_R if some are duplicated, test and never_planted.

    They contain only sequences that differ from their clean twin.
    """
    train = dataset.artifacts.select(dataset.measured(dataset.artifacts))
    sets = {"train": train}
    if int(dataset.artifacts.group.max()) > 0:
        groups = train.group.unique().tolist()
        sets |= {f"dup_{10**group}": train.select(train.group == group) for group in groups}
    others = {"test": dataset.test_artifacts, "never_planted": dataset.never_planted}
    return sets | {name: artifacts.select(dataset.measured(artifacts)) for name, artifacts in others.items()}


def _spread(artifacts: Artifacts, most: int) -> Artifacts:
    return artifacts.select(evenly_spaced(len(artifacts), most))


def _parts(metric: Metric, sets: Mapping[str, Artifacts], dataset: MemorizationDataset) -> list[tuple]:
    """Return (split or test set, sequences) for each of a metric's columns."""
    if metric.on == PLANTED:
        return [(split, sequences) for split, sequences in sets.items() if metric.measured_on(split)]
    if metric.on == ALL_TESTS:
        return [(None, tuple(dataset.tests.values()))]
    if metric.on == TYPICAL:
        return [(name, name) for name in TEXTS]  # the text itself is the references'
    return [(name, (tokens,)) for name, tokens in dataset.tests.items()]


def _all_values(probe: Probe, columns: Sequence[tuple[Metric, str, Any]]) -> dict[str, Values]:
    """Return the values of (metric, column, sequences). Raise UserError for a user's metric that does harm."""
    own = [column for column in columns if not _known(column[0])]
    values = {column: _values(metric, probe, rows) for metric, column, rows in columns if _known(metric)}
    if not own:
        return values
    data = [tensor for _, _, rows in columns for tensor in _tensors(probe, rows)]
    names = dict.fromkeys(metric.name for metric, _, _ in own)
    with left_alone(f"metric {', '.join(names)}:", probe.model, *data):
        values |= {column: _values(metric, probe, rows) for metric, column, rows in own}
    for name in names:
        weights = torch.cat([values[column].weights for metric, column, _ in own if metric.name == name])
        if len(weights) and not weights.any():
            _tell_empty(name)
    return values


@lru_cache
def _tell_empty(name: str) -> None:
    logger.warning("metric %s: has a value for no sequence (NaN is none); its columns stay empty", name)


def _known(metric: Metric) -> bool:
    """Return whether a metric is the library's own, not a user's."""
    return find_metric(metric.name) is not None


def _tensors(probe: Probe, sequences) -> list[torch.Tensor]:
    """Return the token ids that a metric sees."""
    if isinstance(sequences, Artifacts):
        return [sequences.planted, sequences.clean, sequences.prompt_end]
    return [probe.references.texts[sequences]] if isinstance(sequences, str) and probe.references else [*sequences]


def _summary(metric: Metric, values: Values) -> float | None:
    """Return a metric's figure. Raise UserError for a user's metric that gives no number."""
    if _known(metric):
        return metric.summary(values)
    with own_code(f"metric {metric.name}"):
        found = metric.summary(values)
        if found is None or not values.weights.any():
            return None
        if isinstance(found, bool) or not isinstance(found, (Real, torch.Tensor)) or math.isnan(number := float(found)):
            raise ValueError(f"its summary gave {found!r}, not a number or None")
        return number


def _values(metric: Metric, probe: Probe, sequences) -> Values:
    """Return the values of a metric. Raise UserError if they are not one per example."""
    if metric.on == TYPICAL:
        if probe.references is None:
            return as_values(torch.zeros(0))
        rows = len(probe.references.texts[sequences])
    else:
        rows = len(sequences) if metric.on == PLANTED else sum(map(len, sequences))
    with nullcontext() if _known(metric) else own_code(f"metric {metric.name}"):
        values = as_values(metric.values(probe, sequences))
    if values.sums.shape != (rows,) or values.weights.shape != (rows,):
        raise UserError(f"metric {metric.name}: gave values of shape {tuple(values.sums.shape)} for {rows} sequences")
    if not _known(metric):
        _check(metric, values)
    return values


def _check(metric: Metric, values: Values) -> None:
    """Raise UserError for numerators and weights from which no mean can be formed."""
    groups = values.groups
    for good, what in (
        (
            bool((values.weights >= 0).all() and values.weights.isfinite().all()),
            "weights that are negative or not finite",
        ),
        (not values.sums[values.weights > 0].isnan().any(), "sums that are NaN where the weight is not 0"),
        (groups is None or groups.shape == values.sums.shape, "groups that are not one per sequence"),
    ):
        if not good:
            raise UserError(f"metric {metric.name}: gave {what}; a row without a value has weight 0")


def _packed(values: torch.Tensor) -> torch.Tensor:
    """Return the values in the smallest type that holds them: whole numbers exactly, others as float32."""
    if not values.eq(values.round()).all():
        return values.float()
    largest = values.abs().max().item() if len(values) else 0
    types = (torch.int8, torch.int16, torch.int32)
    return values.to(next((dtype for dtype in types if largest <= torch.iinfo(dtype).max), torch.float64))
