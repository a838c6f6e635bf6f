"""No figure from logits, losses or scores that are not finite: no record, no file of what was found, exit code 2."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from small import ROOT, in_process
from threads import thread_pool
from transformers import AutoConfig, AutoModelForCausalLM

from tinymem.data.dataset import Artifacts
from tinymem.data.production import ProductionSettings, production_dataset
from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.errors import NotFinite
from tinymem.files import read_json
from tinymem.localize.registry import METHODS, STUDY
from tinymem.localize.subject import Subject, shared_sections
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.localize.unlearn import unlearn
from tinymem.metrics.evaluate import measure
from tinymem.metrics.landscape import LandscapeSettings, landscape, new_survey
from tinymem.metrics.memorization import memorized
from tinymem.models import losses
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Weights
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.production import LoadSettings
from tinymem.records.table import find_records, load_records
from tinymem.sweeps.attempt import Place
from tinymem.sweeps.engine import run_jobs, survey
from tinymem.sweeps.jobs import Common, Production, production_jobs

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
VOCABULARIES = {"plain": 300, "chunked": losses.LARGE_VOCABULARY}
BAD = [math.nan, math.inf, -math.inf]


def new_model(vocabulary=300):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt_neox", vocab_size=vocabulary, max_position_embeddings=64, **SIZES)
    return AutoModelForCausalLM.from_config(config).eval()


def spoiled(value, vocabulary=300):
    """One weight of the last MLP's output is not finite."""
    model = new_model(vocabulary)
    find_mlps(model)[-1].output.view()[0, 0] = value
    return model


def rows(count, seed=0, vocabulary=300):
    return torch.randint(1, vocabulary, (count, 20), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def dataset():
    return production_dataset(rows(6), rows(8, 1), rows(9, 2), 300, prompt_tokens=6, continuation_tokens=8)


MEASURES = {
    "memorized": lambda model, tokens: memorized(
        model, Artifacts(tokens, tokens, torch.full((len(tokens),), 6), torch.zeros(len(tokens), dtype=torch.long)), 8
    ),
    "losses and hits": losses.losses_and_hits,
    "token losses": lambda model, tokens: torch.no_grad()(losses.token_losses)(model, tokens),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
@pytest.mark.parametrize("value", BAD)
def test_nothing_is_measured(measure, vocabulary, value):
    model, tokens = spoiled(value, vocabulary), rows(3, vocabulary=vocabulary)
    assert losses.chunked(model) == (vocabulary >= losses.LARGE_VOCABULARY)
    measure(new_model(vocabulary), tokens)
    with pytest.raises(NotFinite, match="GPTNeoXForCausalLM: its logits are not finite numbers"):
        measure(model, tokens)


def test_float16_that_overflows_names_the_way_out():
    model = new_model().half()
    model.get_output_embeddings().weight.data.mul_(60000.0 / model.get_output_embeddings().weight.abs().max())
    with pytest.raises(NotFinite, match="use --dtype float32 or bfloat16$"):
        losses.losses_and_hits(model, rows(1))


def test_gradients_may_still_be_taken_by_training_loops_which_check_themselves():
    assert not losses.token_losses(spoiled(math.nan), rows(2)).isfinite().all()


@pytest.mark.parametrize("name", sorted(STUDY))
def test_no_method_ranks_by_chance(name, tmp_path):
    quick = {"slimming": dict(epochs=2), "hard_concrete": dict(epochs=2), "subnet": dict(epochs=1, dtype="float32")}
    quick |= {"balanced_subnet": dict(epochs=1, dtype="float32"), "integrated_gradients": dict(ig_steps=2)}
    task = unlearning_task(new_model(), dataset(), TaskSettings(unlearn_set_name="noise", microbatch=8))
    hp = METHODS[name].hyper_parameters(ratio=(0.1,), **quick.get(name, {}))
    about = {"data": {}, "model": {}, "fingerprints": {"weights": "w", "forget_set": "t"}}
    subject = Subject(spoiled(math.nan), task, lambda model, **_: pytest.fail("measured"), about, tmp_path, tmp_path)
    with pytest.raises(NotFinite, match=f"^{name} with --ratio 0.1: "):
        list(unlearn(subject, METHODS[name], hp, save_models=False))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finite")
    spoiled(math.nan).save_pretrained(folder / "nan")
    write_token_set(folder / "memorized.safetensors", TokenSet(rows(6), {}))
    write_token_set(folder / "random.safetensors", TokenSet(rows(30, 1), {}))
    return folder


@pytest.mark.parametrize("unlearn_set", ["mem", "noise"])
def test_the_scripts_end_with_one_line_and_no_record(place, tmp_path, capsys, unlearn_set):
    words = ["--model_name", place / "nan", "--memorized", place / "memorized.safetensors", "--prompt_tokens", 6]
    words += ["--random", place / "random.safetensors", "--continuation_tokens", 8, "--output_dir", tmp_path]
    words += ["--localization_method", "durable", "--unlearn_set_name", unlearn_set]
    with pytest.raises(SystemExit) as ending:
        in_process("src/localize/prod_grad.py", *words)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert ending.value.code == 2 and len(lines) == 1 and not find_records(tmp_path)
    assert "measuring" in lines[0] and f"{place}/nan: its logits are not finite" in lines[0]


def test_nothing_is_found_in_it(place, tmp_path, capsys):
    words = ["--model_name", place / "nan", "--tokens", place / "random.safetensors", "--prompt_tokens", 6]
    words += ["--continuation_tokens", 8, "--min_distinct", 1, "--output", tmp_path / "found.safetensors"]
    with pytest.raises(SystemExit) as ending:
        in_process("pythia_mem_data/find_memorized.py", *words)
    assert ending.value.code == 2 and "its logits are not finite" in capsys.readouterr().err
    assert not (tmp_path / "found.safetensors").exists()


def test_a_ruined_ratio_fails_and_the_others_have_records(tmp_path):
    model, data = new_model(), dataset()
    task = unlearning_task(model, data, TaskSettings(unlearn_set_name="noise", microbatch=8))
    calls = []

    def spoiled_once(model, **more):
        calls.append(more)
        if len(calls) == 1:
            losses.check_finite(model, torch.tensor([math.nan]))
        return measure(model, data, **more)

    about = shared_sections(model, task, TaskSettings(), {"data": {}, "model": {}})
    subject = Subject(model, task, spoiled_once, about, tmp_path, tmp_path / "scores")
    hp, found = METHODS["durable"].hyper_parameters(ratio=(0.1, 0.2)), []
    with pytest.raises(NotFinite, match="^durable with --ratio 0.1: "):
        for record in unlearn(subject, METHODS["durable"], hp, save_models=False):
            found.append(record["method"]["ratio"])
    assert found == [0.2] and len(find_records(tmp_path)) == 1


def test_an_attack_that_is_ruined_has_no_record_and_the_others_have(tmp_path):
    """The edit and both other attacks are recorded; the error comes at the end and names the attack."""
    model, data = new_model(), dataset()
    task = unlearning_task(model, data, TaskSettings(unlearn_set_name="noise", microbatch=8))
    clean = weights_fingerprint(model)

    def spoil(model, task, hp):
        target = find_mlps(model)[-1].output
        yield 0.1, Weights({target.name: torch.full_like(target.parameter, math.nan)})

    ruin = replace(METHODS["durable"], name="ruin", run=spoil)
    hp = METHODS["durable"].hyper_parameters(ratio=(0.1,))
    attacks = [
        (METHODS["durable"], hp),
        (ruin, hp),
        (METHODS["activations"], METHODS["activations"].hyper_parameters(ratio=(0.1,))),
    ]
    about = shared_sections(model, task, TaskSettings(), {"data": {}, "model": {}})
    subject = Subject(model, task, partial(measure, dataset=data, batch_size=8), about, tmp_path, tmp_path / "scores")
    with pytest.raises(NotFinite, match="attack ruin with --ruin.ratio 0.1: .*not finite"):
        list(unlearn(subject, METHODS["durable"], hp, save_models=False, attacks=attacks))
    records = load_records(tmp_path)
    assert sorted(r["attack"]["name"] for r in records if r["kind"] == "attack") == ["activations", "durable"]
    assert [r["kind"] for r in records].count("unlearn") == 1 and weights_fingerprint(model) == clean


def test_a_search_that_fails_at_a_strength_keeps_those_before_it(tmp_path):
    model, data = new_model(), dataset()
    task = unlearning_task(model, data, TaskSettings(unlearn_set_name="noise", microbatch=8))

    def search(model, task, hp):
        for number, edit in enumerate(METHODS["durable"].run(model, task, hp)):
            if number == 1:
                losses.check_finite(model, torch.tensor([math.inf]))
            yield edit

    method = replace(METHODS["durable"], run=search)
    about = shared_sections(model, task, TaskSettings(), {"data": {}, "model": {}})
    subject = Subject(model, task, partial(measure, dataset=data, batch_size=8), about, tmp_path, tmp_path / "scores")
    with pytest.raises(NotFinite, match="^durable with --ratio 0.2: "):
        list(unlearn(subject, method, method.hyper_parameters(ratio=(0.1, 0.2, 0.3)), save_models=False))
    assert [record["method"]["ratio"] for record in load_records(tmp_path)] == [0.1]


@pytest.mark.slow
def test_a_sweep_counts_it_as_failed_with_its_reason(place, tmp_path):
    data = ProductionSettings(
        str(place / "memorized.safetensors"), str(place / "random.safetensors"), prompt_tokens=6, continuation_tokens=8
    )
    grid = [(METHODS["durable"], METHODS["durable"].hyper_parameters(ratio=(0.1, 0.2)))]
    model = Production(str(place / "nan"), LoadSettings(), data)
    common = Common(str(tmp_path / "data"), "cpu")
    jobs = production_jobs(model, grid, TaskSettings(unlearn_set_name="noise"), common, tmp_path / "out")
    at = Place(str(ROOT), str(tmp_path / "sweep"))
    with thread_pool(at, 1) as pool:
        (job,) = run_jobs(survey(jobs), pool, at).jobs.values()
    assert (job.state, job.left, job.attempts) == ("failed", 2, 1)  # bad input: a second attempt would give the same
    (failure,) = map(read_json, (tmp_path / "sweep" / "failed").iterdir())
    assert "logits are not finite" in job.message and failure["message"] == job.message and failure["exit_code"] == 2


def test_a_landscape_may_be_ruined_far_from_the_model_but_not_at_it(tmp_path):
    settings = LandscapeSettings(points=3, num_sequences=4, distance=1e30)
    new = partial(new_survey, settings=settings, tokens=rows(4), ignored_token=None, batch_size=4)
    model = new_model()
    found = landscape(model, new(model, folder=tmp_path / "a"))["losses"]
    assert found[1][1] is not None and None in found[0]
    bad = spoiled(math.nan)
    with pytest.raises(NotFinite, match="the loss of the model itself"):
        landscape(bad, replace(new(model, folder=tmp_path / "b")))
