"""What `measure` returns: means by column, the values behind them, each forward pass run once."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from tinymem.errors import UserError
from tinymem.metrics import probe
from tinymem.metrics.evaluate import Measurement, averaged, evaluate, measure, saved_values
from tinymem.metrics.memorization import memorized, recovered_rows
from tinymem.metrics.metric import PLANTED, Metric, Values
from tinymem.metrics.registry import METRICS


@pytest.fixture
def passes(monkeypatch):
    """Rows of every forward pass, by what it is for."""
    ran = {"hits": [], "losses": [], "texts": []}

    def counting(name, run, tokens_at=1):
        def counted(*arguments):
            ran[name].append(len(arguments[tokens_at]))
            return run(*arguments)

        return counted

    monkeypatch.setattr(probe, "greedy_hits", counting("hits", probe.greedy_hits))
    monkeypatch.setattr(probe, "window_losses_and_hits", counting("losses", probe.window_losses_and_hits))
    monkeypatch.setattr(probe, "quality", counting("texts", probe.quality))
    return ran


def test_splits_share_one_pass(memorizing_backdoor, passes):
    model, dataset = memorizing_backdoor.model, memorizing_backdoor.dataset
    flags = memorized(model, dataset.artifacts, dataset.continuation) & dataset.measured(dataset.artifacts)
    passes["hits"].clear()
    known = dataset.artifacts.select(flags)
    splits = {"shown": known.select(torch.arange(2)), "held_out": known.select(torch.arange(2, len(known)))}
    row = evaluate(model, dataset, 4, splits=splits)
    train, test = (int(dataset.measured(a).sum()) for a in (dataset.artifacts, dataset.test_artifacts))
    assert sum(passes["hits"]) == 2 * train + test  # planted and clean continuations, once each
    assert len(passes["hits"]) == 2 * math.ceil(train / 4) + math.ceil(test / 4) and passes["losses"] == []
    assert passes["texts"] == [len(tokens) for tokens in dataset.tests.values()]  # for seven columns together
    assert row["percent_memorized_shown"] == row["percent_memorized_held_out"] == 100.0
    assert 0 < row["percent_memorized_train"] < 100


def test_log_probabilities_come_with_the_same_pass(memorizing_backdoor, passes):
    def nats(probe, artifacts):
        return -probe.teacher_forced(artifacts, need="log_probabilities").log_probabilities.double().sum(1)

    metric = Metric("nats", "nats", "twin", PLANTED, ("log_probabilities",), "", nats)
    model, dataset = memorizing_backdoor.model, memorizing_backdoor.dataset
    found = measure(model, dataset, 4, metrics=[metric, "percent_memorized"])
    measured = sum(int(dataset.measured(a).sum()) for a in (dataset.artifacts, dataset.test_artifacts))
    assert sum(passes["losses"]) == measured and passes["hits"] == []
    plain = measure(model, dataset, 4, metrics=["percent_memorized"])
    assert plain.row["percent_memorized_train"] == found.row["percent_memorized_train"]
    expected, k = [], dataset.continuation
    for row, clean, end in zip(*(getattr(dataset.artifacts, n) for n in ("planted", "clean", "prompt_end"))):
        tokens = torch.cat([clean[:end], row[end : end + k]]).long()
        with torch.no_grad():
            log = model(tokens[None]).logits[0].log_softmax(-1)
        expected.append(-log[end - 1 : -1].gather(1, tokens[end:, None]).sum().item())
    told = dataset.measured(dataset.artifacts)
    assert found.values["nats_train"].sums.tolist() == pytest.approx(torch.tensor(expected)[told].tolist(), abs=1e-4)


def test_nothing_is_kept_of_what_a_column_held_before():
    one, none = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    before = Measurement({"a": None, "b": None}, {"a": Values(none, none, torch.zeros(2)), "b": Values(none, none)})
    kept = Measurement({"a": 1.0}, {"a": Values(one, one)}).tensors(before.tensors())
    assert kept.keys() == {"a", "b", "b.weights"} and saved_values(kept, "a").weights.tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["memorizing_noise", "memorizing_backdoor"])
def test_rows_follow_from_the_values_kept(kind, request):
    subject = request.getfixturevalue(kind)
    found = measure(subject.model, subject.dataset)
    kept = found.tensors()
    assert found.row["percent_memorized_train"] == 100 * kept["percent_memorized_train"].double().mean().item()
    for column, value in found.row.items():
        sums = kept[column].double()
        weights = kept.get(f"{column}.weights", torch.ones_like(sums)).double()
        again = Values(sums, weights, kept.get(f"{column}.groups"))
        metric = next(m for m in METRICS.values() if column.startswith(m.name) and (column == m.name or m.divided))
        assert metric.summary(again) == (None if value is None else pytest.approx(value, rel=1e-6))
    assert sum(tensor.nbytes for tensor in kept.values()) < 40 * sum(map(len, subject.dataset.tests.values())) + 2000


def test_values_of_examples_against_a_plain_loop(memorizing_backdoor):
    model, dataset = memorizing_backdoor.model, memorizing_backdoor.dataset
    found, k = measure(model, dataset, 5), dataset.continuation
    for column, artifacts, target in (
        ("percent_memorized_train", dataset.artifacts, "planted"),
        ("percent_memorized_test", dataset.test_artifacts, "planted"),
        ("percent_clean_recovery", dataset.artifacts, "clean"),
    ):
        artifacts = artifacts.select(dataset.measured(artifacts))
        expected = []
        for clean, wanted, end in zip(
            artifacts.clean.tolist(), getattr(artifacts, target).tolist(), artifacts.prompt_end
        ):
            tokens = clean[:end]
            while len(tokens) < min(end + k, len(clean)):
                with torch.no_grad():
                    tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
            expected.append(tokens[end:] == wanted[end : end + k])
        assert found.values[column].sums.tolist() == [float(flag) for flag in expected]
    name, tokens = next(iter(dataset.tests.items()))
    hits = []
    for row in tokens.long():
        with torch.no_grad():
            hits.append(int((model(row[None]).logits[0, :-1].argmax(-1) == row[1:]).sum()))
    values = found.values[f"accuracy_{name}"]
    assert values.sums.tolist() == hits and set(values.weights.tolist()) == {tokens.shape[1] - 1}


def test_the_mean_of_measurements_by_hand():
    def one(figure, other, sums, weights):
        values = Values(*(torch.tensor(some, dtype=torch.float64) for some in (sums, weights)), torch.tensor([0, 1, 1]))
        return Measurement({"a": figure, "b": other}, {"a": values})

    found = averaged([one(1.0, 2.0, [1, 4, 0], [1, 4, 0]), one(4.0, None, [0, 2, 3], [1, 4, 3])])
    assert found.row == {"a": 2.5, "b": None}
    values = found.values["a"]
    assert values.sums.tolist() == [0.5, 3, 1.5] and values.weights.tolist() == [1, 4, 1.5]
    assert values.groups.tolist() == [0, 1, 1]
    assert (values.sums / values.weights)[2] == 1.0  # the last row had a value once: that is its mean


def test_empty_sets_are_none(memorizing_noise):
    model, dataset = memorizing_noise.model, memorizing_noise.dataset
    none = dataset.artifacts.select(torch.arange(0))
    name = next(iter(dataset.tests))
    empty = replace(dataset, tests={**dataset.tests, name: dataset.tests[name][:0]})
    found = measure(model, empty, splits={"shown": none})
    assert found.row["percent_memorized_shown"] is None and found.row["percent_memorized_test"] is None
    assert found.row[f"accuracy_{name}"] is None and found.row[f"loss_{name}"] is None
    others = [found.row[f"accuracy_{other}"] for other in dataset.tests if other != name]
    assert found.row["mean_test_accuracy"] == pytest.approx(sum(others) / len(others))  # of those that there are
    assert found.tensors()["percent_memorized_shown"].shape == (0,)
    nothing = evaluate(model, replace(dataset, tests={name: dataset.tests[name][:0]}), metrics=["perplexity"])
    assert nothing == {"perplexity": None}


def test_a_passage_without_another_twin_has_no_recovery(memorizing_noise):
    dataset = memorizing_noise.dataset
    natural = replace(dataset, kind="natural", artifacts=replace(dataset.artifacts, clean=dataset.artifacts.planted))
    row = evaluate(memorizing_noise.model, natural)
    assert row["percent_clean_recovery"] is None and row["percent_memorized_train"] is not None
    found = recovered_rows(probe.Probe.of(memorizing_noise.model, natural), natural.artifacts)
    assert found.isnan().all()


def test_only_what_was_asked_for(memorizing_noise, passes):
    row = evaluate(memorizing_noise.model, memorizing_noise.dataset, metrics=("perplexity", "mean_test_accuracy"))
    assert list(row) == ["mean_test_accuracy", "perplexity"] and passes["hits"] == []
    with pytest.raises(UserError, match="--metrics ppl: no such metric"):
        evaluate(memorizing_noise.model, memorizing_noise.dataset, metrics=["ppl"])


@pytest.mark.parametrize("metric", ["percent_memorized", "perplexity"])
def test_outputs_that_are_not_finite_give_no_figure(memorizing_noise, metric):
    model = deepcopy(memorizing_noise.model).train()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        evaluate(model, memorizing_noise.dataset, metrics=[metric])
    assert model.training  # as it was


def test_the_mode_is_left_as_it_was(memorizing_noise):
    model = memorizing_noise.model
    evaluate(model, memorizing_noise.dataset, metrics=["perplexity"])
    assert not model.training


def test_values_that_are_not_one_per_example_are_refused(memorizing_noise):
    wrong = Metric("wrong", "", "lower", PLANTED, (), "", lambda probe, artifacts: torch.ones(len(artifacts) + 1))
    with pytest.raises(UserError, match="metric wrong: gave values of shape"):
        evaluate(memorizing_noise.model, memorizing_noise.dataset, metrics=[wrong])
