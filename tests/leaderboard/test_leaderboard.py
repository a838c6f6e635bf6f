"""The leaderboard end to end in miniature: two mitigations and the anchors on one seed, and all from records again."""

import json
import shutil

import pytest
import torch
from boards import TWIN_MODEL, UNEDITED_MODEL, write_board
from safetensors.torch import load_file, save_file
from small import ROOT, SMALL_DATA, in_process
from threads import here, run_here

from tinymem.errors import UserError
from tinymem.leaderboard import evidence
from tinymem.leaderboard.bench import bench_of
from tinymem.leaderboard.cases import find_cases
from tinymem.leaderboard.entrants import submission
from tinymem.leaderboard.protocol import jobs_of, reference_jobs
from tinymem.records.bundle import NAME, read_bundle
from tinymem.records.identity import NEVER_PLANTED, UNEDITED
from tinymem.records.table import load_records
from tinymem.sweeps.engine import JobState, Sweep
from tinymem.sweeps.jobs import Common

SCRIPT = "experiments/leaderboard.py"
SETTINGS = {
    **SMALL_DATA,
    "num_noise": 60,
    "n_layers": 2,
    "n_embd": 32,
    "n_heads": 2,
    "epochs": 20,
    "batch_size": 32,
    "lr": 4e-3,
}
FILES = ("LEADERBOARD.md", "ATTACKS.md", "leaderboard.csv", "index.html")


@pytest.fixture(scope="module", autouse=True)
def jobs_in_this_process():
    """Spare every job the start of a process: that real sweeps start them is tested in tests/sweeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinymem.sweeps.sites.open_pool", here)
        patch.setattr("tinymem.sweeps.attempt._run", run_here)
        yield


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The folder of a leaderboard that has been run, and the words of its command."""
    folder = tmp_path_factory.mktemp("board")
    lines = [f"{name} = {str(value).lower() if isinstance(value, bool) else value}" for name, value in SETTINGS.items()]
    (folder / "tiny.toml").write_text("\n".join(["[tiny]", *lines]))
    words = [
        "--small",
        "--models",
        folder / "tiny.toml",
        "--seeds",
        0,
        "--trials",
        2,
        "--device",
        "cpu",
        "--attacks",
        "quantize",
        "prefix_shift",
    ]
    words += [f"--{name}={folder / name}" for name in ("run_dir", "output_dir", "data_dir")]
    in_process(SCRIPT, *words, "--methods", "activations", "fine-tuning on clean data")
    return folder, words


@pytest.mark.slow
def test_rows_for_all_and_the_twin_first(board):
    text = (board[0] / "output_dir" / "LEADERBOARD.md").read_text()
    table = text[text.index("### Within 1 point of accuracy") :]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert "never-planted twin" in lines[2] and any("unedited" in line for line in lines)
    assert all(
        any(name in line for line in lines)
        for name in ("activations", "fine-tuning on clean data", "random_mask", "output_filter")
    )
    assert "Not run: " in text and "Judged by: exact %" in text


@pytest.mark.slow
def test_everything_is_computed_from_the_records_again(board):
    folder = board[0] / "output_dir"
    before = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    for name in before:
        (folder / name).unlink()
    in_process(SCRIPT, "--report", "--output_dir", folder)
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_means_of_kept_values_are_the_results_of_the_records(board):
    found = evidence.read(board[0] / "output_dir" / "tiny")
    checked = 0
    for record in found.records:
        for column in (*evidence.COLUMNS[:-1],):
            values = found.rows(record, column)
            if values is not None and values.groups is None and len(values.sums):
                mean = (values.sums.sum() / values.weights.sum()).item()
                assert mean == pytest.approx(record["results"][column], abs=1e-4), column
                checked += 1
    assert checked > 50


@pytest.mark.slow
def test_a_submission_is_one_more_row(board, capsys):
    folder, words = board
    (model,) = (folder / "run_dir" / "tiny" / "seed0" / "models").glob("*_seed0_twin_*/epoch_20")
    theirs = shutil.copytree(model, folder / "theirs")
    flags = ["--name", "the twin itself", "--submission", f"0={theirs}", "--seconds", 12, "--needs", "everything"]
    in_process(SCRIPT, *words, *flags)
    text = (folder / "output_dir" / "LEADERBOARD.md").read_text()
    (line,) = [line for line in text.splitlines() if "| the twin itself |" in line][:1]
    assert "| 1.00 (1.00 to 1.00) |" in line and line.rstrip().endswith("| everything | 1 |")
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, *words, *flags, "--seconds", 13)
    said = capsys.readouterr().err
    assert end.value.code == 2 and "--seconds 13: the results of the twin itself say 12" in said
    weights = load_file(theirs / "model.safetensors")
    name, values = next(iter(weights.items()))
    for other, message in (
        (values + 1, "--name the twin itself: other weights of seed 0 have results under it"),
        (values * torch.nan, f"{name} holds values that are no finite numbers"),
        (torch.zeros(2, 2), f"config.json and the weights do not belong together ({name})"),
    ):
        save_file({**weights, name: other}, theirs / "model.safetensors", metadata={"format": "pt"})
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            in_process(SCRIPT, *words, *flags)
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_submission_has_a_job_of_its_own_on_every_seed(tmp_path):
    (case,) = find_cases(["noise"], True, 12)
    entrant = submission("-theirs", {0: "a", 1: "b", 2: "c"}, None, "nothing")
    benches = [bench_of(case, seed, tmp_path) for seed in (0, 1, 2)]
    jobs = [jobs_of(entrant.trials[0], entrant, bench, Common("data"))[-1] for bench in benches]
    assert len({job.name for job in jobs}) == 3 and [job.words[1] for job in jobs] == ["a", "b", "c"]
    assert all("--name=-theirs" in job.words for job in jobs)  # as two words the name would be a flag


def test_the_attacks_of_small_cases_are_those_of_the_published_records(tmp_path):
    (case,) = find_cases(["noise"], True, 12)
    *_, unedited = reference_jobs(bench_of(case, 0, tmp_path), Common("data"))
    published = read_bundle(ROOT / "results/leaderboard/noise" / NAME)
    sections = {json.dumps(record["attack"], sort_keys=True) for record in published if record.get("attack")}
    assert {json.dumps(section, sort_keys=True) for section in unedited.attacks} == sections
    assert "--weight_noise.draws=1" in unedited.words


def test_commands_find_an_attack_of_ones_own_from_any_folder(tmp_path, monkeypatch):
    shutil.copy(ROOT / "src/attacks/quantize.py", tmp_path / "rounding.py")
    monkeypatch.chdir(tmp_path)
    (case,) = find_cases(["noise"], True, 12)
    *_, unedited = reference_jobs(bench_of(case, 0, tmp_path, ("prune", "rounding.py")), Common("data"))
    place = unedited.words.index("--attack")
    assert unedited.words[place + 1 : place + 4] == ("prune", str(tmp_path / "rounding.py"), "--attack_metrics")


@pytest.mark.slow
def test_a_filter_of_the_output_is_not_saved_as_a_model(board, capsys):
    (model,) = (board[0] / "run_dir" / "tiny" / "seed0" / "models").glob("*_seed0_[0-9a-f]*/epoch_20")
    words = ["--model_path", model, "--localization_method", "tinymem.leaderboard.output_filter", "--device", "cpu"]
    with pytest.raises(SystemExit):
        in_process("src/localize/localize_memorization.py", *words, "--output_dir", board[0] / "own")
    assert "not in the weights" in capsys.readouterr().err.splitlines()[-1]


OWN = """
import torch
from tinymem.localize.ranking import weight_ratio
from tinymem.models.adapter import find_mlps, mlp_weights
from tinymem.options import settings

@settings
class HyperParameters:
    ratio: tuple[float, ...] = weight_ratio((0.01, 0.5), "share to drop")

def score(model, task, hp):
    return {name: -weight.view().abs() for name, weight in mlp_weights(find_mlps(model)).items()}
"""


@pytest.mark.slow
def test_a_method_of_ones_own_is_one_more_row_also_where_its_file_is_gone(board):
    folder, words = board
    (folder / "smallest.py").write_text(OWN)
    in_process(SCRIPT, *words, "--method_file", folder / "smallest.py", "--needs", "nothing at all")
    text = (folder / "output_dir" / "LEADERBOARD.md").read_text()
    (line,) = [line for line in text.splitlines() if "| smallest |" in line][:1]
    assert "| ratio " in line and line.rstrip().endswith("| nothing at all | 2 |")
    (folder / "smallest.py").unlink()
    in_process(SCRIPT, "--report", "--output_dir", folder / "output_dir")
    assert (folder / "output_dir" / "LEADERBOARD.md").read_text() == text


@pytest.mark.slow
def test_nothing_is_run_twice(board):
    folder, words = board
    before = len(load_records(folder / "run_dir"))
    stamp = (folder / "output_dir" / "tiny" / NAME).read_bytes()
    in_process(SCRIPT, *words, "--methods", "activations")
    assert (folder / "output_dir" / "tiny" / NAME).read_bytes() == stamp
    assert len(load_records(folder / "run_dir")) == before


@pytest.mark.slow
def test_others_add_a_row_to_published_results(board, tmp_path, capsys):
    """Whoever has the published folder alone trains nothing, repeats nothing, and keeps the rows that are there."""
    folder, words = board
    output, runs = shutil.copytree(folder / "output_dir", tmp_path / "output"), tmp_path / "runs"
    words = [*words, "--output_dir", output, "--run_dir", runs]
    published = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    in_process(SCRIPT, *words, "--methods", "activations")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == published
    assert not list(runs.rglob("timings.jsonl")) and len(list(runs.rglob("model.safetensors"))) == 2  # nothing ran
    shutil.rmtree(runs)
    in_process(SCRIPT, *words, "--export", tmp_path / "exported")
    assert len(list(runs.rglob("model.safetensors"))) == 2 and (tmp_path / "exported/tiny/seed0.safetensors").exists()
    capsys.readouterr()
    in_process(SCRIPT, *words, "--attacks", "quantize", "--dry_run")
    said = "tiny: its results also have --attacks prefix_shift; new rows are in no table until they have, too"
    assert said in capsys.readouterr().err
    in_process(SCRIPT, *words, "--methods", "durable")
    lines = (output / "LEADERBOARD.md").read_text().splitlines()
    for name in ("durable", "fine-tuning on clean data", "random_mask"):
        assert any(f"| {name} |" in line for line in lines), name
    old, new = evidence.read(folder / "output_dir" / "tiny"), evidence.read(output / "tiny")
    assert set(old.by_key) < set(new.by_key) and old.values.keys() < new.values.keys()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, *words, "--trials", 3)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and "other settings" in said and str(output / "tiny") in said


@pytest.mark.slow
def test_a_folder_of_its_own_adds_to_a_copy_of_the_published_results(board, tmp_path, monkeypatch, capsys):
    folder, words = board
    published = shutil.copytree(folder / "output_dir", tmp_path / "results" / "leaderboard")
    before = {path: path.read_bytes() for path in published.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    words = [*words, "--methods", "activations", "--output_dir", tmp_path / "own", "--run_dir", tmp_path / "runs"]
    capsys.readouterr()
    in_process(SCRIPT, *words, "--from_scratch", "--dry_run")
    assert "memorization_in_toy_models.py" in capsys.readouterr().out
    in_process(SCRIPT, *words)
    assert not list((tmp_path / "runs").rglob("timings.jsonl"))  # nothing ran
    one, other = (evidence.read(place / "tiny") for place in (published, tmp_path / "own"))
    assert set(one.by_key) == set(other.by_key)
    assert {path: path.read_bytes() for path in published.rglob("*") if path.is_file()} == before


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The words of a command beside published results of two seeds, written by hand."""
    (case,) = find_cases(["noise"], True, 3)
    models = {(UNEDITED, 0): [UNEDITED_MODEL] * 2, (NEVER_PLANTED, 0): [TWIN_MODEL] * 2}
    folder = write_board(tmp_path / "results" / "leaderboard", case, models) / "noise"
    for seed in (0, 1):
        for settings in bench_of(case, seed).pair:
            (folder / f"seed{seed}" / settings.name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = ["--small", "--models", "noise", "--trials", 3, "--methods", "npo", "--attacks", "quantize"]
    return [*words, "--output_dir", tmp_path / "own", "--run_dir", tmp_path / "runs"]


def test_the_models_of_all_seeds_are_taken_up(published, tmp_path, capsys):
    """Also those of seeds that are not asked for: their records are copied, too."""
    in_process(SCRIPT, *published, "--seeds", 0, "--dry_run")
    copied = {f"{path.parts[-3]}/{path.name}" for path in (tmp_path / "runs").glob("noise/seed*/models/*")}
    known = {f"{path.parent.name}/{path.name}" for path in (tmp_path / "results/leaderboard/noise").glob("seed*/*")}
    assert copied == known and len(copied) == 4
    assert "noise: its results also have --seeds 1; new rows" in capsys.readouterr().err


def test_published_results_of_other_settings_are_left_with_a_word(published, tmp_path, capsys):
    in_process(SCRIPT, *published, "--trials", 4, "--seeds", 0, "--dry_run")
    said = capsys.readouterr()
    assert (
        "noise: takes nothing from results/leaderboard/noise, whose results are of other settings (trials 3, not 4); "
        "trains and runs its own\n" in said.err
    )
    assert "memorization_in_toy_models.py" in said.out and not (tmp_path / "runs").exists()
    in_process(SCRIPT, *published, "--trials", 4, "--seeds", 0, "--dry_run", "--from_scratch")
    assert "takes nothing" not in capsys.readouterr().err  # as it was asked for


@pytest.mark.parametrize("held_back", ["npo", "unedited and twin"])
def test_nobody_chooses_before_all_is_tried(held_back, published, monkeypatch, capsys):
    stages = []

    def run(arguments, jobs, *_):
        """What --limit does: some jobs are not begun."""
        stages.append({job.group for job in jobs})
        states = {job.name: JobState(job, 1, 0, [None] * (job.group == held_back)) for job in jobs}
        return states, Sweep(states)

    monkeypatch.setattr("tinymem.cli.sweeping.run_missing", run)
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, *published, "--seeds", 0, 1)
    assert end.value.code == 1 and f"not complete:\n  not run: {held_back.split()[0]}" in capsys.readouterr().err
    if held_back == "npo":
        assert "npo" in stages[0] and "random_mask" in stages[1] and "npo" not in stages[1]
    else:  # without the models nothing goes on
        assert len(stages) == 1


def test_published_records_hold_no_path_of_a_machine(tmp_path):
    sources = [
        {"flag": "--localization_method", "path": path, "sha256": "0"} for path in ("/home/me/mine.py", "mine.py")
    ]
    record = {"format": 2, "kind": "unedited", "data": {"seed": 0}, "results": {}, "cost": {}}
    both = (
        {**record, "environment": {"threads": 1, "sources": sources}},
        {**record, "data": {"seed": 1}, "environment": {}},
    )
    evidence.write(evidence.Evidence(both, {}, {}), tmp_path)
    environments = {record["data"]["seed"]: record["environment"] for record in read_bundle(tmp_path / NAME)}
    assert environments == {0: {"threads": 1, "sources": sources[1:]}, 1: {}}


def test_results_on_another_model_are_not_mixed_in():
    one, other = ({"data": {"seed": 0}, "fingerprints": {"weights": weights}} for weights in "ab")
    evidence.check_models([one, {"data": {"seed": 1}, "fingerprints": {"weights": "b"}}, one, {"data": {"seed": 0}}])
    with pytest.raises(UserError, match="seed 0: .* different models"):
        evidence.check_models([one, other])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--submission", "0=x"], "--submission, --name: give both"),
        (["--name", "x", "--submission", "0=nowhere", "--models", "noise"], "no such folder"),
        (["--name", "x", "--submission", "nowhere", "--models", "noise"], "must be SEED=FOLDER"),
        (["--name", "x", "--submission", "0=.", "--models", "noise"], "no folder for seed 1"),
        (["--name", "x", "--submission", "0=."], "give the one model that it is an edit of"),
        (["--report", "--methods", "npo"], "--report: runs nothing, and has no use for --methods"),
        (["--report", "--seeds", 0], "--report: runs nothing, and has no use for --seeds"),
        (["--export", "x", "--dry_run"], "--export: runs nothing, and has no use for --dry_run"),
        (["--models", "nothing"], "--models nothing: must be some of"),
        (
            ["--name", "unedited", "--submission", "0=.", "--models", "noise", "--seeds", "0"],
            "another entrant has this name",
        ),
        (
            ["--name", "Balanced subnet", "--submission", "0=.", "--models", "noise", "--seeds", "0"],
            "another entrant has this name",
        ),
        (["--name", " ", "--submission", "0=.", "--models", "noise", "--seeds", "0"], "must have letters or digits"),
        (["--trials", "0"], "--trials"),
        (["--attacks", "nothing", "--models", "noise"], "--attacks nothing: must be one of"),
        (["--method_file", "nothing", "--models", "noise"], "--method_file nothing: must be one of"),
        (["--method_file", "npo", "--models", "noise"], "--method_file npo: another entrant has this name"),
        (["--export", "x", "--models", "noise", "--seeds", "77"], "no such model"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, "--small", *words, "--output_dir", tmp_path / "out", "--run_dir", tmp_path / "runs")
    said = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and len(said) == 1 and message in said[0]
    assert not list(tmp_path.iterdir())  # nothing is left behind
