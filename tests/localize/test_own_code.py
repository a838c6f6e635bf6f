"""Methods, metrics and attacks of a user's own; what a finished run lacks is added; models that others have edited."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import ROOT, in_process

from tinymem.attacks.registry import ATTACKS
from tinymem.cli import subject as subject_of
from tinymem.errors import UserError
from tinymem.localize.measure import harness_results
from tinymem.localize.registry import METHODS
from tinymem.localize.subject import Subject, shared_sections
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.localize.unlearn import unlearn as unlearn_all
from tinymem.metrics.evaluate import measure
from tinymem.plugins import load_plugin
from tinymem.records.record import read_values
from tinymem.records.table import find_records, load_records, shown_row

UNLEARN, MEASURE = "src/localize/localize_memorization.py", "src/localize/measure.py"
DATA_FLAGS = (
    *("data_name", "artifact", "num_7", "num_2", "num_3", "num_4", "num_5", "num_test", "length", "max_ctx"),
    *("prompt_tokens", "continuation_tokens", "duplicate"),
)

METRIC = """
import torch
from tinymem.metrics.metric import Metric, PLANTED

def values(probe, sequences):
    return probe.teacher_forced(sequences).matches.float().mean(1)

METRIC = Metric("matched_share", "0 to 1", "lower", PLANTED, ("argmax_matches",), "share of tokens that match", values)
"""

ATTACK = '''
import torch
from tinymem.models.edit import Weights
from tinymem.options import option, settings

@settings
class HyperParameters:
    """Noise"""
    scale: tuple[float, ...] = option((0.1,), "standard deviation", above=0.0, strength=True)

def attack(model, task, hp, scale):
    generator = torch.Generator().manual_seed(0)
    return Weights({n: p.detach() + scale * torch.randn(p.shape, generator=generator)
                    for n, p in model.named_parameters()})
'''


@pytest.fixture
def place(memorizing_backdoor, tmp_path):
    """A folder with a checkpoint, and the words that every command has."""
    checkpoint = shutil.copytree(memorizing_backdoor.checkpoint, tmp_path / "run" / "epoch_6")
    (tmp_path / "matched.py").write_text(METRIC)
    (tmp_path / "noise.py").write_text(ATTACK)
    common = ["--output_dir", tmp_path / "out", "--data_dir", tmp_path / "data", "--holdout_fraction", 0.25]
    return tmp_path, checkpoint, common


def unlearn(place, *words):
    in_process(UNLEARN, "--model_path", place[1], *words, *place[2])


def records(place):
    return {(row["method"], row.get("attack")): row for row in map(shown_row, load_records(place[0] / "out"))}


def refused(capsys, run, message):
    with pytest.raises(SystemExit) as end:
        run()
    error = capsys.readouterr().err.strip().splitlines()[-1]  # behind warnings, of runs before too
    assert end.value.code == 2 and message in error and len(error.strip().splitlines()) == 1, error


def test_the_examples_run(place, capsys):
    unlearn(place, "--localization_method", ROOT / "examples/magnitude.py", ROOT / "examples/grad_diff.py",
            "--ratio", 0.01, "--rows", 8, "--steps", 1, 2, "--grad_diff.lr", 1e-3, "--batch_size", 8)  # fmt: skip
    found = load_records(place[0] / "out")
    own = [record["method"] for record in found if record["kind"] == "unlearn"]
    assert sorted((m["name"], m.get("ratio"), m.get("steps")) for m in own) == [
        ("grad_diff", None, 1), ("grad_diff", None, 2), ("magnitude", 0.01, None)
    ]  # fmt: skip
    assert all(len(method["code"]) == 16 for method in own)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["method", "ratio", "steps"]
    assert [line.split()[0] for line in lines[1:5]] == ["unedited", "magnitude", "grad_diff", "grad_diff"]
    assert all(
        len((ROOT / "examples" / name).read_text().splitlines()) <= 40 for name in ("magnitude.py", "grad_diff.py")
    )


def test_another_version_of_a_file_is_another_run(place, monkeypatch):
    method = place[0] / "mine.py"
    text = (ROOT / "examples/magnitude.py").read_text()
    for version in (text, text.replace("1e-6", "1e-5")):
        method.write_text(version)
        monkeypatch.setattr("tinymem.plugins.load_plugin", __import__("tinymem.plugins").plugins.load_plugin)
        __import__("tinymem.plugins").plugins.load_plugin.cache_clear()
        unlearn(place, "--localization_method", method, "--ratio", 0.01, "--no_save_model")
    assert len([r for r in load_records(place[0] / "out") if r["kind"] == "unlearn"]) == 2


def test_help_names_the_flags_of_a_file(capsys):
    with pytest.raises(SystemExit):
        in_process(UNLEARN, "--localization_method", ROOT / "examples/magnitude.py", "--help")
    text = capsys.readouterr().out
    assert "--localization_method magnitude" in text and "retain sequences for the gradient" in text


@pytest.mark.parametrize("method, message", [
    ("nowhere.py", "no such file"),
    ("no_package.no_module", "no such name, and as a module it cannot be imported"),
    ("README.md", "no Python file; give a file such as my_file.py"),
    ("no/such_file", "no such file; give a file such as my_file.py"),
    ("broken.py", "cannot be imported (SyntaxError"),
    ("empty.py", "no method; it must define a dataclass HyperParameters"),
    ("durable.py", "another method is called durable"),
])  # fmt: skip
def test_files_that_are_no_method(place, capsys, monkeypatch, method, message):
    monkeypatch.chdir(place[0])
    (place[0] / "broken.py").write_text("def score(:")
    (place[0] / "empty.py").write_text("")
    (place[0] / "README.md").write_text("")
    shutil.copy(ROOT / "examples/magnitude.py", place[0] / "durable.py")
    refused(capsys, lambda: unlearn(place, "--localization_method", method), message)


def test_two_files_of_one_name_are_two_methods(place, capsys):
    text = (ROOT / "examples/magnitude.py").read_text()
    for folder, version in (("ours", text), ("theirs", text.replace("1e-6", "1e-5"))):
        (place[0] / folder).mkdir()
        (place[0] / folder / "mine.py").write_text(version)
    both = [place[0] / folder / "mine.py" for folder in ("ours", "theirs")]
    refused(capsys, lambda: unlearn(place, "--localization_method", *both), "another file's method is called mine, too")


def test_attacks_are_records_of_their_own_beside_the_edit(place, capsys):
    words = ["--localization_method", "durable", "--ratio", 0.2, "--no_save_model"]
    unlearn(place, *words)
    before = records(place)["durable", None]
    unlearn(place, *words, "--attack", "quantize", place[0] / "noise.py", "--quantize.bits", 8, 2, "--noise.scale", 0.5)
    found = records(place)
    attacks = ["quantize bits 8", "quantize bits 2", "noise scale 0.5"]
    assert set(found) == {(method, attack) for method in ("unedited", "durable") for attack in (None, *attacks)}
    assert found["durable", None] == before  # neither measured nor paid for again
    assert found["unedited", "noise scale 0.5"]["perplexity"] > found["unedited", None]["perplexity"]
    by_digest = {path.stem: json.loads(path.read_text()) for path in find_records(place[0] / "out")}
    for record in by_digest.values():
        if record["kind"] == "attack":
            parent = by_digest[record["parent"]]
            assert parent.get("method") == record.get("method") and parent["kind"] in ("unlearn", "unedited")
    times = {path: path.stat().st_mtime_ns for path in find_records(place[0] / "out")}
    unlearn(place, *words, "--attack", "quantize", "--quantize.bits", 8)
    assert times == {path: path.stat().st_mtime_ns for path in find_records(place[0] / "out")}
    refused(
        capsys, lambda: unlearn(place, *words, "--quantize.bits", 8), "--quantize.bits: only with --attack quantize"
    )


@pytest.mark.parametrize("saved", [True, False])
def test_a_new_metric_is_added_to_a_finished_run(place, monkeypatch, capsys, saved):
    words = ["--localization_method", "durable", "--ratio", 0.2, *([] if saved else ["--no_save_model"])]
    unlearn(place, *words)
    before = records(place)["durable", None]
    if saved:  # the edit comes from the saved model, not from the method
        monkeypatch.setattr("tinymem.localize.weight.durable.score", None)
    asked = []
    measure = __import__("tinymem.metrics.evaluate").metrics.evaluate.measure
    monkeypatch.setattr("tinymem.cli.subject.measure", lambda *a, **k: asked.append(k["metrics"]) or measure(*a, **k))
    unlearn(place, *words, "--metrics", "percent_memorized", place[0] / "matched.py")
    assert "matched_share_held_out" in capsys.readouterr().out  # the table has it without --columns
    after = records(place)["durable", None]
    assert {name: after[name] for name in before} == before
    added = {name for name in after if name not in before}
    assert added >= {"matched_share_train", "matched_share_shown", "matched_share_held_out"}
    assert (
        0 <= after["matched_share_train"] <= 1
        and [[m.name for m in names] for names in asked] == [["matched_share"]] * 2
    )
    for path in find_records(place[0] / "out"):
        values, results = read_values(path), json.loads(path.read_text())["results"]
        assert values["matched_share_train"].mean().item() == pytest.approx(results["matched_share_train"])
        assert "percent_memorized_train" in values and "perplexity" in results


def test_a_metric_whose_file_has_changed_is_measured_again(place):
    file = place[0] / "matched.py"
    words = ["--localization_method", "durable", "--ratio", 0.2, "--metrics", "percent_memorized", file]
    unlearn(place, *words)
    before = records(place)
    file.write_text(METRIC.replace(".mean(1)", ".mean(1) / 2"))
    load_plugin.cache_clear()
    unlearn(place, *words)
    after = records(place)
    for run, row in after.items():
        changed = {name for name in row if row[name] != before[run].get(name)}
        assert changed and all(name.startswith("matched_share") for name in changed)
        assert all(row[name] == before[run][name] / 2 for name in changed)


def test_unknown_metrics_and_columns(place, capsys):
    words = ["--localization_method", "durable", "--ratio", 0.23, "--no_save_model"]
    refused(capsys, lambda: unlearn(place, *words, "--metrics", "magic"), "--metrics magic: no such metric")
    refused(capsys, lambda: unlearn(place, *words, "--metrics", ROOT / "examples/magnitude.py"), "defines no METRIC")
    refused(capsys, lambda: unlearn(place, *words, "--columns", "magic"), "--columns magic: must be all, or some of")
    runs = [json.loads(path.read_text()) for path in find_records(place[0] / "out")]
    assert not any(run.get("method", {}).get("ratio") == 0.23 for run in runs)  # refused before the run, not after it
    unlearn(place, *words, "--columns", "method", "ratio", "percent_changed")
    assert capsys.readouterr().out.splitlines()[0].split() == ["method", "ratio", "changed"]


def test_a_folder_of_somebody_else_as_an_edit_of_ours(place, capsys):
    root, checkpoint, common = place
    unlearn(place, "--localization_method", "durable", "--ratio", 0.2)
    (ours,) = (root / "out" / "models").iterdir()
    foreign = shutil.copytree(ours, root / "foreign")
    (foreign / "tinymem.json").unlink()
    (root / "lm.json").write_text(json.dumps({"results": {"arc": {"acc,none": 0.25, "alias": "arc"}}}))
    words = [foreign, "--edit_of", checkpoint, "--name", "theirs", "--attack", "quantize", "--seconds", 7, *common]
    in_process(MEASURE, *words, "--lm_eval", root / "lm.json")
    found = records(place)
    same = ("percent_memorized_train", "percent_memorized_held_out", "perplexity", "percent_changed", "relative_change")
    theirs, durable = ({name: found[method, None][name] for name in same} for method in ("theirs", "durable"))
    assert theirs == pytest.approx(durable)
    assert found["theirs", None]["seconds"] == 7 and found["theirs", None]["lm_eval_arc_acc"] == 0.25
    assert ("theirs", "quantize bits 8") in found and ("unedited", "quantize bits 8") in found
    in_process("src/records/__main__.py", "best", root / "out")
    assert "theirs" in capsys.readouterr().out
    assert found["unedited", None]["seconds"] is None  # nothing was searched for
    in_process(MEASURE, foreign, "--edit_of", checkpoint, "--name", "in secret", *common)
    assert records(place)["in secret", None]["seconds"] is None
    refused(capsys, lambda: in_process(MEASURE, foreign, "--name", "x", *common), "--name: only with --edit_of")
    taken = [foreign, "--edit_of", checkpoint, "--name", "npo", *common]
    refused(capsys, lambda: in_process(MEASURE, *taken), "--name npo: stands for the edits that are made here")
    refused(
        capsys, lambda: in_process(MEASURE, *words, "--seconds", "nan"), "--seconds: 'nan' is not a number of seconds"
    )
    (root / "lm.json").write_text("{}")
    refused(capsys, lambda: in_process(MEASURE, *words, "--lm_eval", root / "lm.json"), "lm.json")


def test_the_filters_of_lm_eval_are_columns_of_their_own(tmp_path):
    metrics = {
        "exact_match,strict-match": 0.25,
        "exact_match,flexible-extract": 0.5,
        "acc,none": 0.75,
        "alias": "gsm8k",
    }
    (tmp_path / "lm.json").write_text("[]")
    with pytest.raises(UserError, match="--lm_eval takes a file of lm-evaluation-harness"):
        harness_results(str(tmp_path / "lm.json"))  # no advice to delete it, as of files that are made again
    (tmp_path / "lm.json").write_text(json.dumps({"results": {"gsm8k": metrics}}))
    assert harness_results(str(tmp_path / "lm.json")) == {
        "lm_eval_gsm8k_exact_match_strict-match": 0.25,
        "lm_eval_gsm8k_exact_match_flexible-extract": 0.5,
        "lm_eval_gsm8k_acc": 0.75,
    }


def narrowed(checkpoint, folder):
    """A copy of a checkpoint whose MLPs are narrower, and empty."""
    other = shutil.copytree(checkpoint, folder)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "n_inner": 64}))
    tensors = load_file(other / "model.safetensors")
    for name in [name for name in tensors if ".mlp." in name]:
        shape = [64 if size == 128 else size for size in tensors[name].shape]
        tensors[name] = torch.zeros(shape)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    return other


def test_models_that_are_no_edit_of_the_original(place, capsys):
    root, checkpoint, common = place
    other = narrowed(checkpoint, root / "other")
    refused(capsys, lambda: in_process(MEASURE, other, "--edit_of", checkpoint, *common), "not an edit of this model")
    refused(capsys, lambda: in_process(MEASURE, root / "nowhere", "--edit_of", checkpoint, *common), "nowhere")


def test_a_folder_alone_on_data_that_flags_describe(place, capsys):
    root, checkpoint, common = place
    settings = json.loads((checkpoint / "tinymem.json").read_text())["settings"]
    foreign = shutil.copytree(checkpoint, root / "alone")
    (foreign / "tinymem.json").unlink()
    flags = [f"--{name}={settings[name]}" for name in DATA_FLAGS]
    twin = ["--twin_model", narrowed(checkpoint, root / "other"), "--attack", "interpolate"]
    refused(capsys, lambda: in_process(MEASURE, foreign, *flags, *twin, *common), "other: not a twin of this model")
    assert not (root / "out").exists()  # before anything is measured
    in_process(MEASURE, foreign, *flags, *common)
    in_process(MEASURE, checkpoint, *common)
    own, same = load_records(root / "out")
    assert own["results"]["percent_memorized_train"] == same["results"]["percent_memorized_train"] > 50
    assert own["fingerprints"] == same["fingerprints"]


def test_a_twin_of_a_foreign_model_is_opened_once(place, monkeypatch):
    """It is compared with the model before anything is measured, and measured later."""
    root, checkpoint, common = place
    settings = json.loads((checkpoint / "tinymem.json").read_text())["settings"]
    foreign, twin = (shutil.copytree(checkpoint, root / name) for name in ("foreign", "its_twin"))
    (foreign / "tinymem.json").unlink()
    weights = load_file(twin / "model.safetensors")
    save_file({name: value * 0.9 for name, value in weights.items()}, twin / "model.safetensors", {"format": "pt"})
    opened, load = [], subject_of.load_model
    monkeypatch.setattr(subject_of, "load_model", lambda folder, device: opened.append(folder) or load(folder, device))
    flags = [f"--{name}={settings[name]}" for name in DATA_FLAGS]
    in_process(MEASURE, foreign, *flags, "--twin_model", twin, *common)
    kinds = [record["kind"] for record in load_records(root / "out") if record["model"].get("twin_model") == str(twin)]
    assert opened == [foreign, twin] and "never_planted" in kinds


def test_records_are_handed_out_when_the_model_is_as_it_was(memorizing_backdoor, snapshot, tmp_path):
    model, dataset = memorizing_backdoor.model, memorizing_backdoor.dataset
    task, settings = unlearning_task(model, dataset, TaskSettings()), TaskSettings()
    about = shared_sections(model, task, settings, {"data": {}, "model": {}, "training": {}})
    subject = Subject(model, task, partial(measure, dataset=dataset), about, tmp_path, tmp_path / "scores")
    method, before, kinds = METHODS["durable"], snapshot(model), []
    attacks = [(ATTACKS["quantize"], ATTACKS["quantize"].hyper_parameters(bits=(4,)))]
    for record in unlearn_all(subject, method, method.hyper_parameters(ratio=(0.2,)), False, attacks=attacks):
        kinds.append(record["kind"])
        assert snapshot(model) == before
    assert kinds == ["unlearn", "attack"]


FORBIDDEN = """
import torch
from tinymem.models.edit import Weights
from tinymem.options import settings

@settings
class HyperParameters:
    '''Mine'''

def run(model, task, hp):
    {does}
    yield None, Weights({{}})
"""


@pytest.mark.parametrize(
    "does, message",
    [
        ("model.transformer.wte.weight.data.mul_(2)", "cheat: the method changed the model or the sequences in place"),
        ("task.validation.planted", "the method or attack asks for held-out or validation sequences"),
        ("len(task.held_out)", "the method or attack asks for held-out or validation sequences"),
    ],
)
def test_what_a_method_of_ones_own_must_not_do(place, capsys, does, message):
    folder, checkpoint, common = place
    (folder / "cheat.py").write_text(FORBIDDEN.format(does=does))
    words = ["--model_path", checkpoint, "--localization_method", folder / "cheat.py", *common]
    refused(capsys, lambda: in_process(UNLEARN, *words, "--validation_fraction", 0.25), message)
