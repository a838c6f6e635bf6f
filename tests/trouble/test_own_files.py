"""Methods, metrics and attacks in users' files that fail, do harm or give nonsense: one line, and no record."""

import pytest
import torch
from tiny import new_model, new_task

from tinymem.data.production import production_dataset
from tinymem.errors import OutOfMemory, UserError
from tinymem.localize.cache import Cache
from tinymem.localize.method import edits, method_of
from tinymem.metrics.evaluate import measure
from tinymem.metrics.registry import plugin_metrics
from tinymem.planning.memory import shape_of
from tinymem.planning.plan import FAILURES, Sizes, plan, watched
from tinymem.plugins import load_plugin

METHOD = """
import sys
import torch
from tinymem.metrics.elicitation import Elicitation, any_exact
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Weights, Zeros
from tinymem.options import option, settings
from tinymem.training.objective import ObjectiveSettings

NAME = "transformer.h.0.mlp.c_fc.weight"

@settings
class HyperParameters:
    '''Mine'''

    {setting}

{function}
"""
RATIO = "ratio: tuple[float, ...] = option((0.1,), 'r', strength=True)"


@pytest.fixture
def plugin(tmp_path):
    """plugin(text): a user's file with this text, as a module."""

    def plugin(text: str):
        path = tmp_path / "mine.py"
        path.write_text(text)
        load_plugin.cache_clear()
        return load_plugin(str(path), "--flag")

    return plugin


def refused(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).isprintable()
    return str(caught.value)


LAYERS = "for mlp in find_mlps(model)]"
SCORES = {
    "raise ValueError('boom')": "mine: ValueError: boom (",
    "sys.exit(0)": "mine: SystemExit: 0 (",
    "return None": "'NoneType' object is not iterable",
    f"return [[0.0] {LAYERS}": "scores of layer 0 are no tensor of numbers",
    f"return [torch.zeros(mlp.inner_dim, dtype=torch.complex64) {LAYERS}": "scores of layer 0 are no tensor of numbers",
    f"return [torch.zeros(3) {LAYERS}": "scores of layer 0 have shape (3,), not (32,)",
    f"return [torch.zeros(mlp.inner_dim) {LAYERS}[:1]": "scores of 1 layers, the model has 2",
    "return {'nope': torch.zeros(2)}": "has no parameter nope",
    "return {NAME: torch.zeros(3, 3)}": "scores of transformer.h.0.mlp.c_fc.weight have shape (3, 3), not (32, 8)",
    f"task.forget.planted.zero_(); return [torch.ones(mlp.inner_dim) {LAYERS}": "changed the model or the sequences",
    f"task.retain.zero_(); return [torch.ones(mlp.inner_dim) {LAYERS}": "changed the model or the sequences",
    f"model.train(); return [torch.ones(mlp.inner_dim) {LAYERS}": "changed the model or the sequences",
    f"model.lm_head.register_forward_hook(lambda *a: None); return [torch.ones(mlp.inner_dim) {LAYERS}": "changed",
}


@pytest.mark.parametrize("body", SCORES)
def test_rankings(plugin, tmp_path, body):
    method = method_of(plugin(METHOD.format(setting=RATIO, function=f"def score(model, task, hp):\n    {body}")))
    for _ in range(2):  # nothing is kept that a second try would take
        task = new_task(cache=Cache(tmp_path / "scores", {}))
        assert SCORES[body] in refused(lambda: list(edits(method, new_model("gpt2"), task, method.hyper_parameters())))


EDITS = {
    "run(model, task, hp): return None": "'NoneType' object is not iterable",
    "run(model, task, hp): yield 5": "cannot unpack",
    "run(model, task, hp): yield 0.1, 5": "it gave a int, not an edit",
    "run(model, task, hp): yield 0.2, Zeros({})": "yielded 0.2 first for 0.1",
    "run(model, task, hp): yield 0.1, Weights({'nope': torch.zeros(2)})": "has no parameter nope",
    "run(model, task, hp): yield 0.1, Weights({NAME: torch.zeros(32, 8)})": "a value of (32, 8) for (8, 32)",
    "run(model, task, hp): yield 0.1, Weights({}, {'perplexity': 1.0})": "no metric's name",
    "run(model, task, hp): yield 0.1, Weights({}, {'x': torch.ones(1)})": "must be a number",
    "learn(model, task, hp, strength): return None": "object is not iterable",
    "learn(model, task, hp, strength): return {NAME: torch.zeros(32, 8)}": "a torch.float32 mask",
    "attack(model, task, hp, strength): return None": "it gave a NoneType",
    "elicit(model, task, hp, strength): return Elicitation({'loss': len}, 5)": "it must have percent_memorized",
    "elicit(model, task, hp, strength): return Elicitation({'percent_memorized': len}, 0)": "sequences 0",
}


@pytest.mark.parametrize("function", EDITS)
def test_edits(plugin, function):
    method = method_of(plugin(METHOD.format(setting=RATIO, function=f"def {function}")))
    assert EDITS[function] in refused(
        lambda: list(edits(method, new_model("gpt2"), new_task(), method.hyper_parameters()))
    )


def test_out_of_memory_stays_what_it_is(plugin):
    text = "def run(model, task, hp):\n    raise OutOfMemory('no room')"
    method = method_of(plugin("from tinymem.errors import OutOfMemory\n" + METHOD.format(setting=RATIO, function=text)))
    with pytest.raises(OutOfMemory, match="^no room$"):
        list(edits(method, new_model("gpt2"), new_task(), method.hyper_parameters()))


SETTINGS = {
    "x: int": "missing 1 required positional argument",
    "x: 'Nope' = 3": "name 'Nope' is not defined",
    "x: int | str = 3": "x is of type int | str; it must be bool, int, float, str, or a tuple of",
    "x: tuple = option((1, 2), 'x')": "x is of type <class 'tuple'>; it must be bool,",  # 12 would be ('1', '2')
    "name: str = 'npo'": "name is the record's own",  # otherwise its records would be another method's
    "r: float = option(0.1, 'r', strength=True)": "must be a tuple",
    "r: tuple[float, ...] = option((), 'r', strength=True)": "must be a tuple",
    "y: float = option(5.0, 'y', below=1.0)": "HyperParameters: ValueError: a default is not allowed, --y 5.0: must be "
    "< 1.0",
    "x: float = option(0.1, 'x', below=1.0, grid=(0.1, 5.0))": "--x 5.0: must be < 1.0",
    "x: float = option(0.1, 'x', grid=(0.1, 0.1))": "a tuple of different values",  # drawing would not end
    "x: float = option(0.1, 'x', grid=0.1)": "a tuple of different values",
    "r: tuple[str, ...] = option(('a/../b',), 'r', strength=True)": "must be a tuple",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(plugin, setting):
    text = METHOD.format(setting=setting, function="def run(model, task, hp): yield 0.1, Zeros({})")
    assert SETTINGS[setting] in refused(lambda: method_of(plugin(text)))


@pytest.mark.parametrize("part, call", [("resolve", lambda m: m.resolve(None, 1)),
                                        ("seen", lambda m: m.seen(None, None)),
                                        ("steps", lambda m: m.steps(None, None, None))])  # fmt: skip
@pytest.mark.parametrize(
    "body, message", [("return None", "it gave a NoneType"), ("raise KeyError('x')", "KeyError: 'x'")]
)
def test_other_parts(plugin, part, call, body, message):
    function = f"def run(model, task, hp): yield 0.1, Zeros({{}})\ndef {part}(*arguments): {body}"
    method = method_of(plugin(METHOD.format(setting=RATIO, function=function)))
    assert f"mine: {part}: " in refused(lambda: call(method)) and message in refused(lambda: call(method))


@pytest.mark.parametrize(
    "body, message",
    [
        ("raise ValueError('boom')", "ValueError: boom"),
        ("return [1.0] * len(artifacts)", "gave a list"),
        ("return torch.full((len(artifacts),), 2.0)", "between 0 and 1"),
        ("return torch.full((len(artifacts),), -1.0)", "between 0 and 1"),
        ("artifacts.planted.zero_(); return torch.ones(len(artifacts))", "changed the model or the sequences"),
        ("next(probe.model.parameters()).data.zero_(); return torch.ones(len(artifacts))", "changed the model or the"),
        ("return any_exact(lambda p, a: [(a, torch.ones(1, 1).bool())], 5).values['percent_memorized']("
         "probe, artifacts)", "another number of rows or tokens"),
    ],
)  # fmt: skip
def test_what_attacks_on_prompts_read(plugin, body, message):
    function = f"""
def read(probe, artifacts):
    {body}
def elicit(model, task, hp, strength):
    return Elicitation({{"percent_memorized": read}}, 5)
"""
    method = method_of(plugin(METHOD.format(setting=RATIO, function=function)))
    ((elicited, _),) = edits(method, new_model("gpt2"), new_task(), method.hyper_parameters())
    data = measured_data()
    assert message in refused(
        lambda: measure(new_model("gpt2"), data, metrics=["percent_memorized"], elicited=elicited)
    )


METRIC = """
import sys
import torch
from tinymem.metrics.metric import *

def values(probe, artifacts):
    {body}

METRIC = Metric("mine", "", "lower", PLANTED, (), "x", values{summary})
"""
ROWS = "torch.ones(len(artifacts)).double()"
VALUES = {
    "raise KeyError('x')": "metric mine: KeyError: 'x' (",
    "sys.exit(0)": "SystemExit: 0",
    "return 1.0": "gave a float",
    "return None": "gave a NoneType",
    "return torch.ones(len(artifacts), dtype=torch.complex64)": "gave a Tensor, not a tensor of real numbers",
    f"return Values({ROWS}, -{ROWS})": "weights that are negative",
    f"return Values({ROWS} * torch.nan, {ROWS})": "sums that are NaN",
    f"return Values({ROWS}, {ROWS}, torch.zeros(99).long())": "groups that are not one per sequence",
    f"artifacts.clean.zero_(); return {ROWS}": "changed the model or the sequences in place",
    f"next(probe.model.parameters()).data.zero_(); return {ROWS}": "changed the model or the sequences in place",
    f"torch.set_default_dtype(torch.float64); return {ROWS}": "changed the model or the sequences in place",
}


def measured_data():
    """Three rows of 12 tokens: one memorized, one to test on, one to retain."""
    rows = torch.randint(0, 14, (3, 12), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return production_dataset(rows[:1], rows[1:2], rows[2:], 14, 4, 4)


def measured(metric) -> dict:
    return measure(new_model("gpt2"), measured_data(), metrics=["perplexity", metric]).row


@pytest.mark.parametrize("body", VALUES)
def test_values_of_metrics(plugin, body):
    metric = plugin(METRIC.format(body=body, summary="")).METRIC
    try:
        assert VALUES[body] in refused(lambda: measured(metric))
    finally:
        torch.set_default_dtype(torch.float32)


SUMMARIES = {
    "'high'": "its summary gave 'high'",
    "True": "its summary gave True",
    "[1.0]": "its summary gave [1.0]",
    "float('nan')": "its summary gave nan",
    "10**400": "too large to convert",
    "1 / 0": "ZeroDivisionError",
}


@pytest.mark.parametrize("summary", SUMMARIES)
def test_summaries_of_metrics(plugin, summary):
    metric = plugin(METRIC.format(body=f"return {ROWS}", summary=f", lambda values: {summary}")).METRIC
    assert SUMMARIES[summary] in refused(lambda: measured(metric))


@pytest.mark.parametrize("summary", ["2", "torch.tensor(2.0)", "values.sums.numpy().sum() * 2"])
def test_numbers_of_any_kind_are_figures(plugin, summary):
    metric = plugin(METRIC.format(body=f"return {ROWS}.requires_grad_()", summary=f", lambda values: {summary}")).METRIC
    assert measured(metric)["mine_train"] == 2.0


def test_a_row_without_a_value_leaves_no_figure(plugin, caplog):
    summary = ", lambda values: values.sums.mean() / values.weights.sum()"
    metric = plugin(METRIC.format(body=f"return {ROWS} * torch.nan", summary=summary)).METRIC
    assert measured(metric)["mine_train"] is None
    assert [record.message for record in caplog.records] == [
        "metric mine: has a value for no sequence (NaN is none); its columns stay empty"
    ]


def test_a_file_whose_metrics_are_no_list(tmp_path):
    (tmp_path / "x.py").write_text("METRICS = 5")
    assert "TypeError" in refused(lambda: plugin_metrics(str(tmp_path / "x.py")))


SIZES = Sizes(2, 2, 8, 4, 2)


@pytest.mark.parametrize("body", ["[][0]", "sys.exit(0)", "return None", "return [torch.ones(3)]"])
def test_a_plan_of_a_method_that_fails_is_none(plugin, body):
    method = method_of(plugin(METHOD.format(setting=RATIO, function=f"def score(model, task, hp):\n    {body}")))
    with pytest.raises(FAILURES):
        watched(method, new_model("gpt2"), SIZES, method.hyper_parameters())


def test_a_plan_of_a_ranking(plugin):
    body = f"return [torch.ones(mlp.inner_dim) {LAYERS}"
    method = method_of(plugin(METHOD.format(setting=RATIO, function=f"def score(model, task, hp):\n    {body}")))
    shape = shape_of(new_model("gpt2").config, torch.float32, "cpu")
    assert plan(method, shape, SIZES, method.hyper_parameters()).weights == shape.weight_bytes
