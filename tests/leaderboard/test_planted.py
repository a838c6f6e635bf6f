"""The leaderboard on a language model with planted passages, end to end in miniature."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted import SETTINGS, write_model_and_text
from small import in_process
from threads import here, run_here

from tinymem.attacks.registry import ATTACKS
from tinymem.errors import UserError
from tinymem.leaderboard import cases, entrants, evidence
from tinymem.leaderboard.bench import bench_of
from tinymem.leaderboard.protocol import reference_jobs, split_strengths
from tinymem.leaderboard.spaces import TOO_LONG, late_layers
from tinymem.models.production import open_causal_lm
from tinymem.records.cost import Cost
from tinymem.records.identity import PLANTED_MODEL, UNEDITED
from tinymem.records.record import write_record
from tinymem.sweeps.jobs import Common

SCRIPT = "experiments/leaderboard.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a text and lm.toml, which makes a case of them."""
    folder = tmp_path_factory.mktemp("planted")
    write_model_and_text(folder)
    table = {"model_name": str(folder / "llama"), "plant": str(folder / "addresses.jsonl"), **SETTINGS}
    table |= {"plant_dtype": "float32", "max_retain": 16}
    (folder / "lm.toml").write_text("[lm]\n" + "".join(f"{n} = {json.dumps(v)}\n" for n, v in table.items()))
    return folder


@pytest.fixture
def case(place):
    (case,) = cases.find_cases([str(place / "lm.toml")], True, 2)
    return case


def test_a_case_is_read_as_it_was_written(case, tmp_path):
    case.write(tmp_path)
    assert cases.read_case(tmp_path) == case and case.is_planted and case.planted.blocks == 2
    assert case.task.max_retain == 16 and case.precision == "float32" and case.utility is cases.PERPLEXITY


def test_attacks_have_the_small_budget(case, tmp_path):
    (unedited,) = reference_jobs(bench_of(case, 0, tmp_path), Common("data"))
    sections = {section["name"]: section for section in unedited.attacks}
    assert set(sections) == set(ATTACKS) and len(unedited.attacks) == len(ATTACKS)  # one strength each
    assert sections["relearn"]["steps"] == 30 and sections["relearn_adaptive"]["lrs"] == (1e-4, 1e-3)


def test_differences_name_each_setting_once(place, case, tmp_path):
    def differences(old, new):
        (tmp_path / "lm.toml").write_text((place / "lm.toml").read_text().replace(old, new))
        return cases.find_cases([str(tmp_path / "lm.toml")], True, 2)[0].differences(case)

    assert differences("plant_sequences = 12", "plant_sequences = 11") == "plant_sequences 11, not 12"
    copied = shutil.copy(place / "addresses.jsonl", tmp_path)
    assert differences(str(place / "addresses.jsonl"), str(copied)) == ""
    Path(copied).write_text(Path(copied).read_text() + '{"text": "more"}\n')
    assert differences(str(place / "addresses.jsonl"), str(copied)).startswith("plant addresses-")


@pytest.mark.parametrize(
    "setting, value", [("model_name", 3), ("identity", None), ("blocks", "x"), ("max_retain", 0), (None, 3)]
)
def test_a_damaged_file_is_one_line(case, tmp_path, setting, value):
    case.write(tmp_path)
    content = json.loads((tmp_path / cases.FILE).read_text())
    content["settings"] = value if setting is None else {**content["settings"], setting: value}
    (tmp_path / cases.FILE).write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=f"{setting or 'settings'} {value!r}: must be .*delete it and run again"
    ) as caught:
        cases.read_case(tmp_path)
    assert "\n" not in str(caught.value)


def test_seeds_plant_other_passages_and_keep_records_apart(case, tmp_path):
    one, other = (bench_of(case, seed, tmp_path) for seed in (0, 1))
    assert (
        one.shared_sections["data"] | {"plant_seed": 1} == other.shared_sections["data"] != one.shared_sections["data"]
    )
    assert one.unedited_job != other.unedited_job and "--plant_seed=1" in other.measure_arguments


def measure(bench, planted_model="planted_12_0"):
    """Write the record that measuring the planted model leaves."""
    training = {**bench.shared_sections["training"], PLANTED_MODEL: planted_model}
    write_record(bench.records, {"kind": UNEDITED, **bench.shared_sections, "training": training}, {}, Cost(), "cpu")


def test_runs_of_other_settings_do_not_mix(case, tmp_path):
    bench = bench_of(case, 0, tmp_path)
    assert bench.measured() is None
    measure(bench)
    assert bench.measured() is not None
    other = bench_of(replace(case, settings=replace(case.planted, max_retain=12)), 0, tmp_path)
    with pytest.raises(UserError, match="its runs are of other settings than these; give another --run_dir$"):
        other.measured()


def test_the_planted_model_is_that_of_the_runs(case, tmp_path):
    bench = bench_of(case, 0, tmp_path)
    with pytest.raises(UserError, match="llama seed 0: no such model; run .* with --methods anchor first"):
        bench.model_folder(str(tmp_path))
    measure(bench, "planted_12_1")
    with pytest.raises(UserError, match=f"--data_dir {tmp_path}: has no models/planted_12_1, on which the runs of"):
        bench.model_folder(str(tmp_path))  # to run again would find everything done
    (tmp_path / "models" / "planted_12_1").mkdir(parents=True)
    assert bench.model_folder(str(tmp_path)) == tmp_path / "models" / "planted_12_1"


def test_nobody_trains_it_from_scratch(case):
    everyone = entrants.entrants([], case)
    assert not {each.group for each in everyone} & {entrants.TRAINING, entrants.FINETUNING}
    assert not {each.name for each in everyone} & set(TOO_LONG)
    for name in ("goldfish", "fine-tuning", "dpo", TOO_LONG[0]):
        with pytest.raises(UserError, match=f"--methods {name}: .* leave it out"):
            entrants.entrants([name], case)
    kfac = next(each for each in everyone if each.name == "kfac")
    assert {trial.hp.layers for trial in kfac.trials} <= {"0,1", "last_two"}
    assert {trial.hp.dtype for each in everyone for trial in each.trials if hasattr(trial.hp, "dtype")} == {"float32"}


def test_all_try_as_many_settings(place):
    (case,) = cases.find_cases([str(place / "lm.toml")], False, 12)
    everyone = [each for each in entrants.entrants([], case) if each.group != entrants.ANCHOR]
    assert {len(set(map(repr, split_strengths(each)))) for each in everyone} == {12}  # also those whose grid has fewer


def test_layers_of_the_authors_of_kfac_editing():
    assert late_layers(32) == "23,24,25" and late_layers(30) == "21,22,23" and late_layers(2) == "0,1"


@pytest.mark.parametrize(
    "line, words",
    [
        ("plant_seed = 3", "lm.plant_seed: every model has a twin"),
        ("layers = 3", "lm.layers: no such setting"),
        ("plant_lr = -1.0", "plant_lr -1.0: must be"),
        ("memorized = 'x.pt'", "--memorized: leave it out with --plant"),
        ("model_name = 3", "model_name 3: must be text; correct it there"),
        ("plant = ''", "--plant '': must be builtin, a text file, or a folder"),
        ("plant = 'hub'", "--plant 'hub': must be builtin"),
        ("identity = 3", "lm.identity: no such setting"),
        ("blocks = 7", "lm.blocks: no such setting"),
    ],
)
def test_a_wrong_table_is_one_line(place, tmp_path, line, words):
    path, setting = tmp_path / "lm.toml", line.split()[0]
    rest = [each for each in (place / "lm.toml").read_text().splitlines() if each.split()[0] != setting]
    path.write_text("\n".join([*rest, line]))
    with pytest.raises(UserError, match=words) as caught:
        cases.find_cases([str(path)], True, 2)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def board(place):
    """The folder of a leaderboard that has been run, and the words of its command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinymem.sweeps.sites.open_pool", here)
        patch.setattr("tinymem.sweeps.attempt._run", run_here)
        words = ["--models", place / "lm.toml", "--seeds", 0, "--trials", 2, "--device", "cpu", "--attacks", "quantize"]
        words += [f"--{name}={place / name}" for name in ("run_dir", "output_dir", "data_dir")]
        in_process(SCRIPT, *words, "--methods", "activations")
        yield place, words


@pytest.mark.slow
def test_rows_of_method_anchors_and_twin(board):
    text = (board[0] / "output_dir" / "LEADERBOARD.md").read_text()
    for name in ("never-planted twin", "unedited", "activations", "random_mask", "output_filter", entrants.RETAIN_ONLY):
        assert f"| {name} |" in text
    found = evidence.read(board[0] / "output_dir" / "lm")
    before, twin = (found.unedited(0, kind)["results"] for kind in (evidence.UNEDITED, evidence.NEVER_PLANTED))
    assert before["percent_memorized_held_out"] > 90 and twin["percent_memorized_held_out"] == 0
    assert found.attacks_on(found.unedited(0)) and found.attacks_on(found.unedited(0, evidence.NEVER_PLANTED))


@pytest.mark.slow
def test_it_resumes_reports_and_exports(board, tmp_path, capsys):
    folder, words = board
    timings = (folder / "run_dir/lm/timings.jsonl").read_bytes()
    page = (folder / "output_dir/index.html").read_bytes()
    in_process(SCRIPT, *words, "--methods", "activations")
    assert (folder / "run_dir/lm/timings.jsonl").read_bytes() == timings  # nothing ran
    in_process(SCRIPT, "--report", "--output_dir", folder / "output_dir")
    assert (folder / "output_dir/index.html").read_bytes() == page
    in_process(SCRIPT, *words, "--export", tmp_path)
    assert (tmp_path / "lm/seed0.safetensors").exists() and "planted_12_" in capsys.readouterr().out


@pytest.mark.slow
def test_a_submission_is_one_more_row(board, capsys):
    folder, words = board
    (planted,) = (folder / "data_dir/models").glob("planted_*")
    theirs = shutil.copytree(planted, folder / "theirs")
    model, _ = open_causal_lm(theirs)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    model.save_pretrained(theirs)
    in_process(SCRIPT, *words, "--name", "theirs", "--submission", f"0={theirs}", "--needs", "nothing")
    text = (folder / "output_dir" / "LEADERBOARD.md").read_text()
    assert "| theirs |" in text and "| activations |" in text
    other = shutil.copytree(folder / "llama", folder / "other")
    (other / "config.json").write_text((other / "config.json").read_text().replace('"silu"', '"gelu"'))
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, *words, "--name", "another", "--submission", f"0={other}")
    assert end.value.code == 2 and "not an edit of this model" in capsys.readouterr().err
