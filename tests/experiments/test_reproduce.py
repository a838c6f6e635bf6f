"""Reproduction: the recounted triggers, comparisons by hand, and the small case from training to report."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from handmade import edited
from small import ROOT, in_process

sys.path.append(str(ROOT / "experiments"))

import as_published
import reproduce
import reproduction
import reproduction_compare as compare
import reproduction_report
from reproduction import Case

from tinymem import files
from tinymem.data import artifacts as planting
from tinymem.data import numbers
from tinymem.data.build import build_dataset
from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.localize.task import TaskSettings, UnlearningTask
from tinymem.metrics.memorization import memorized
from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.plots import plot_trade_offs
from tinymem.records.choose import ComparedRun, Configuration
from tinymem.records.identity import identity_of, is_run
from tinymem.records.record import record_path
from tinymem.records.table import load_records, shown_row
from tinymem.sweeps.job import missing
from tinymem.sweeps.jobs import Checkpoint, Common, unlearning_identity


def test_each_trigger_is_judged_in_the_window_of_the_last_one_that_counted():
    clean = torch.zeros(5, 150, dtype=torch.uint8)
    planted = clean.clone()
    ends = torch.tensor([40, 120, 10, 100, 50])
    for row, end in enumerate(ends):
        planted[row, end:] = 2
    planted[2, 30:] = 0  # its planted part, 10..29, ends before the window
    artifacts = Artifacts(planted, clean, ends, torch.zeros(5, dtype=torch.long))
    dataset = SimpleNamespace(kind="backdoor", continuation=50, ignored_token=None)
    dataset.measured = lambda some: MemorizationDataset.measured(dataset, some)
    # windows: 50..99 at first, then 40..89, which those that are left out do not move
    assert as_published.counted_as_published(dataset, artifacts).tolist() == [True, False, False, False, True]
    assert dataset.measured(artifacts).all()
    assert as_published.counted_as_published(dataset, artifacts.select(slice(0, 0))).shape == (0,)


@pytest.mark.parametrize(("task", "published"), [("increment", (64, 68, 67)), ("mult", (180, 212, 185))])
def test_exactly_as_many_triggers_count_as_in_the_study(task, published):
    """In its order: that of two permutations by its seed, of all sequences and then of those with the trigger."""
    tokens = numbers.encode(numbers.distinct_sequences(task, 7, 20000, 20), 150)
    tokens = tokens[permutation(len(tokens))]
    for seed, expected in zip((0, 1, 3), published):
        ends = planting.trigger_end(tokens, [int(digit) for digit in str(100 + seed)])
        clean, ends = tokens[ends > 0], ends[ends > 0]
        every = Artifacts.from_numpy(planting.plant_backdoor(clean, ends), clean, ends, 0 * ends)
        artifacts = every.select(permutation(len(clean))[-(len(clean) // 10) :])
        dataset = SimpleNamespace(kind="backdoor", continuation=50, ignored_token=None)
        dataset.measured = partial(MemorizationDataset.measured, dataset)
        assert int(as_published.counted_as_published(dataset, artifacts).sum()) == expected


@pytest.mark.parametrize(("seed", "counted"), [(0, 64), (1, 55), (3, 63)])
def test_in_our_order_other_triggers_count(seed, counted):
    """As DIFFERENCES.md has it."""
    dataset = build_dataset(DataSettings(artifact="backdoor", seed=seed))
    flags = as_published.counted_as_published(dataset, dataset.test_artifacts)
    assert (int(flags.sum()), len(flags)) == (counted, 89 if seed == 3 else 88)


def permutation(count):
    return torch.randperm(count, generator=torch.Generator().manual_seed(598))


def test_zero_out_as_published_keeps_one_neuron_and_drops_the_others():
    sizes = ModelSettings(n_layers=2, n_heads=2, n_embd=8)
    model = new_model(sizes, vocabulary_size=11, max_ctx=12, seed=0, bos_token_id=1, eos_token_id=2).eval()
    tokens, zeros = torch.randint(0, 11, (5, 12)), torch.zeros(5, dtype=torch.long)
    planted = Artifacts(tokens, tokens, zeros, zeros)
    task = UnlearningTask(planted, tokens, planted.select(zeros[:0]), 4)
    scores = as_published.inverted_zero_out(model, task)
    assert [len(layer) for layer in scores] == [32, 32]
    for layer, neuron in [(0, 0), (0, 31), (1, 7)]:
        alone = torch.zeros(32)
        alone[neuron] = 1
        output = model.transformer.h[layer].mlp.c_proj
        hook = output.register_forward_pre_hook(lambda module, inputs: (inputs[0] * alone,))
        expected = task.mean_loss(model, tokens)
        hook.remove()
        assert float(scores[layer][neuron]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_the_slips_are_repeated_on_a_checkpoint(tmp_path, memorizing_backdoor, capsys):
    """By the commands that reproduce.py gives, which then finds nothing missing."""
    path = tmp_path / "model" / "epoch"
    shutil.copytree(memorizing_backdoor.checkpoint, path)
    settings, epoch = memorizing_backdoor.settings, memorizing_backdoor.settings.training.epochs
    checkpoint, common = Checkpoint(path, settings, epoch), Common(str(tmp_path))
    jobs = [reproduce.slip_job(reproduction.LAPTOP[0], checkpoint, slip, common) for slip in reproduction.SLIPS]
    in_process(*jobs[0].command([]))
    in_process(*jobs[1].command([0.05]))
    assert [missing(job) for job in jobs] == [[], [0.01, 0.1]]
    in_process(*jobs[1].command(missing(jobs[1])))
    in_process(*jobs[1].command([0.05]), "--sequences", 3)  # another run
    assert [missing(job) for job in jobs] == [[], []]
    with pytest.raises(SystemExit):
        in_process(*jobs[0].command([]), "--ratio", 0.1)
    assert "--ratio: only with --slip zero_out" in capsys.readouterr().err

    records = load_records(path.parent)
    (counted,) = (r for r in records if is_run(r, reproduction.slip_identity(settings, epoch, "triggers")))
    flags = memorized(
        memorizing_backdoor.model, memorizing_backdoor.dataset.test_artifacts, memorizing_backdoor.dataset.continuation
    )
    assert counted["results"]["test_triggers"] == len(flags)
    assert counted["results"]["percent_memorized_test"] == pytest.approx(100 * float(flags.float().mean()))
    dropped = {
        r["method"]["ratio"]: r["results"]["percent_memorized_test"]
        for r in records
        if r["method"]["name"] == "zero_out_as_published" and r["method"]["sequences"] == reproduction.SLIP_SEQUENCES
    }
    case = SimpleNamespace(seeds=(settings.data.seed,), unlearned=epoch, settings=lambda seed, epoch: settings)
    table = compare.inverted_zero_out(case, path.parent)
    assert [ratio for ratio, *_ in table] == list(reproduction.SLIP_RATIOS) == sorted(dropped)
    for ratio, share, lost in table:
        assert share.values == [dropped[ratio]] and 0 <= dropped[ratio] <= 100 and len(lost.values) == 1


def test_a_difference_is_that_of_the_common_seeds():
    published = compare.Spread({0: 10.0, 1: 20.0, 3: 60.0})
    row = compare.Comparison("model", 50, "% memorized", published, compare.Spread({0: 11.0, 1: 23.0, 7: 99.0}), 1)
    assert row.difference == 2.0  # (1 + 3) / 2
    assert row.cells()[3:6] == ["30.0 (10.0 to 60.0)", "44.3 (11.0 to 99.0)", "+2.0"]
    assert compare.Comparison("model", 50, "", compare.Spread({}), compare.Spread({0: 1.0}), 1).difference is None
    assert compare.Spread({0: -0.001}).text(2) == "0.00"


def configuration(ratio: float, memorized: list[float], accuracy: list[float], **more) -> Configuration:
    before = {"mean_test_accuracy": 0.97, "percent_memorized_test": 100.0}
    runs = [
        ComparedRun(
            {
                "data.seed": seed,
                "percent_memorized_test": m,
                "change_accuracy": a - 0.97,
                "cost.seconds": 1.0,
                "method.name": "obs",
            },
            before,
            {},
            {**compare.defaults("obs"), "ratio": ratio, **more},
        )
        for seed, (m, a) in enumerate(zip(memorized, accuracy))
    ]
    return Configuration(runs)


def published(memorized: float, lost: float) -> compare.Published:
    return compare.Published({"ratio": 0.05, "num_grads": 512.0}, memorized, lost, 106.4)


def test_the_run_that_comes_closest_to_published_is_shown():
    asked = published(20.0, 0.3)
    as_good = configuration(0.01, [10.0, 30.0], [0.968, 0.968])  # 20 % at 0.2 points
    trade = configuration(0.05, [0.0, 0.0], [0.96, 0.96])  # 0 % at 1 point: better by the study's sum
    assert compare.best([trade, as_good], asked) is as_good
    one_seed = configuration(0.1, [0.0], [0.97])
    assert compare.best([one_seed, as_good], asked) is as_good and compare.best([one_seed], asked) is one_seed
    more_seeds = configuration(0.2, [15.0] * 3, [0.968] * 3)  # as good too
    assert compare.best([as_good, more_seeds], asked) is more_seeds
    near = configuration(0.3, [60.0] * 2, [0.97] * 2)
    far = configuration(0.4, [90.0] * 3, [0.97] * 3)
    assert compare.best([far, near], asked) is near  # more seeds do not make it closer
    assert compare.shortfall(as_good, asked) == 0 and compare.shortfall(trade, asked) == pytest.approx(0.7)
    strict = published(5.0, 0.1)  # 15 + 0.1 points missing, or 0.9
    assert compare.shortfall(as_good, strict) == pytest.approx(15.1) and compare.best([trade, as_good], strict) is trade


def test_ours_stands_at_the_published_setting_and_where_it_comes_closest(tmp_path):
    mild, at_published = configuration(0.01, [40.0, 50.0], [0.97, 0.96]), configuration(0.05, [5.0], [0.94])
    other = configuration(0.05, [1.0], [0.97], num_grads=64)
    row = compare.Unlearned("obs", published(48.7, 1.06), [other, mild, at_published])
    assert row.at_published is at_published and row.closest is mild
    assert row.cells_at_published() == ["obs", "5 %", "48.7", "1.06", "5.0", "3.00", "-43.7", "+1.94", "0", "106", "1"]
    closest = ["1 %", "45.0 (40.0 to 50.0)", "0.50 (0.00 to 1.00)", "yes", "0 1", "1 (1 to 1)"]
    assert row.cells_of_closest() == ["obs", "48.7", "1.06", *closest]
    points = row.points_by_seed()
    assert {seed: len(some) for seed, some in points.items()} == {"seed 0": 3, "seed 1": 1}
    written = plot_trade_offs({"obs": ((1.06, 48.7), points)}, tmp_path / "figure")
    assert [path.suffix for path in written] == [".png", ".pdf"] and written[0].stat().st_size > 10_000


def test_a_setting_names_the_epochs_and_what_is_not_the_default():
    greedy = {"ratio": 0.002, "batch_size": 64, "greedy_k": 10, "unlearn_share": None}
    assert compare.setting("greedy", greedy) == "0.2 %, greedy_k 10"
    own = {"ratio": 0.3, "epochs": 3, "momentum": 0.9, "unlearn_loss_cap": 3.0, "dtype": "float32"}
    assert compare.setting("balanced_subnet", own) == "30 %, epochs 3, unlearn_loss_cap 3, dtype float32"


CASE = reproduction.LAPTOP[0]
DURABLE: dict = {"durable": {"ratio": (0.05,)}}


def unlearning_record(
    seed: int, memorized: float, accuracy: float, weights: str = "w", method: str = "unedited", ratio=None, **task
) -> dict:
    """Of a full-size model, as localize_memorization.py writes it."""
    results = {"percent_memorized_train": memorized, "percent_memorized_test": memorized}
    results |= {"mean_test_accuracy": accuracy}
    sections = unlearning_identity(CASE.settings(seed, 50), 50, TaskSettings(**task))
    prints = {"weights": weights, "forget_set": weights}
    identity = edited({**sections, "fingerprints": prints}, method, **({} if ratio is None else {"ratio": ratio}))
    return {
        **identity_of(identity),
        "results": results,
        "cost": {"seconds": 1.0},
        "environment": {"tinymem": "1", "torch": "1", "transformers": "1"},
    }


def write_records(folder: Path, *records: dict) -> None:
    for record in records:
        files.write_json(record_path(folder, record), record)


def test_only_the_runs_of_the_grid_on_the_usual_task_are_compared(tmp_path):
    durable = {"method": "durable", "ratio": 0.05}
    for seed, left in [(0, 20.0), (1, 80.0)]:
        write_records(
            tmp_path,
            unlearning_record(seed, 97.0, 0.972, method="unedited"),
            unlearning_record(seed, left, 0.971, **durable),
            unlearning_record(seed, 0.0, 0.972, method="durable", ratio=0.07),  # not in the grid
            unlearning_record(seed, 97.0, 0.972, method="unedited", holdout_fraction=0.5),
            unlearning_record(seed, 0.0, 0.972, **durable, holdout_fraction=0.5),  # another task
        )
    (row,) = compare.compare_unlearning(CASE, DURABLE, tmp_path)
    assert row.method == "durable" and row.closest is row.at_published
    assert row.cells_at_published()[4:9] == ["50.0 (20.0 to 80.0)", "0.10 (0.10 to 0.10)", "-15.9", "-0.18", "0 1"]


def test_records_of_another_model_are_replaced_all_at_once(tmp_path, capsys):
    case, there = CASE.only([3]), tmp_path / "results" / "records"
    run = tmp_path / "models" / case.settings(3, 0).name / "unlearned"
    unedited, edited = {"method": "unedited"}, {"method": "durable", "ratio": 0.05}

    def weights() -> list[str]:
        reproduce.collect_records([case], tmp_path / "models", there)
        return sorted(files.read_json(path)["fingerprints"]["weights"] for path in there.glob("*.json"))

    there.mkdir(parents=True)
    write_records(run, unlearning_record(3, 97.0, 0.97, "old", **unedited))
    write_records(run, unlearning_record(3, 9.0, 0.97, "old", **edited))
    assert weights() == ["old", "old"] == weights()
    shutil.rmtree(run)
    write_records(run, unlearning_record(3, 96.0, 0.97, "new", **unedited))
    assert weights() == ["old", "old"] and "still lacks 1 of 2" in capsys.readouterr().err
    write_records(run, unlearning_record(3, 8.0, 0.97, "new", **edited))
    assert weights() == ["new", "new"]


@pytest.mark.slow
def test_the_report_is_that_of_its_records(tmp_path):
    folder = tmp_path / "reproduction"
    shutil.copytree(ROOT / "results" / "reproduction", folder)
    reproduction_report.write_report(reproduction.everything(), reproduction.UNLEARNING, tmp_path)
    written = (tmp_path / "REPRODUCTION.md").read_text(encoding="utf-8")
    assert written == (ROOT / "results" / "REPRODUCTION.md").read_text(encoding="utf-8")


def test_every_published_method_is_one_of_ours_and_is_unlearned():
    (case,) = (case for case in reproduction.LAPTOP if case.unlearned)
    names = {compare.ours_of(row) for row in case.published_unlearning}
    assert names == {"unedited", *reproduction.UNLEARNING}
    assert len(reproduction.UNLEARNING) == 11


def test_cases_have_published_numbers_for_each_epoch():
    for case in (*reproduction.LAPTOP, *reproduction.everything()):
        assert {int(row["epoch"]) for row in case.published} == set(case.epochs), case.name
        for seed in case.seeds:
            numbered = {int(row["epoch"]) for row in case.published if int(row["seed"]) == seed}
            assert max(case.epochs_of(seed)) == max(numbered), case.name
    names = {case.name for case in reproduction.everything()}
    assert names > {case.name for case in reproduction.LAPTOP}


def test_seeds_choose_the_cases_that_have_them():
    def chosen(*seeds, case=None):
        flags = SimpleNamespace(small=False, everything=False, case=case, seeds=list(seeds))
        return {case.name: case.seeds for case in reproduce.chosen(flags)}

    assert chosen(1, 3) == {"backdoor_increment_2layers": (1, 3), "backdoor_mult_2layers": (1, 3)}
    assert chosen(0).keys() == {case.name for case in reproduction.LAPTOP} and set(chosen(0).values()) == {(0,)}
    with pytest.raises(UserError, match="--seeds 3: must be one of 0"):
        chosen(0, 3, case=["backdoor_mult_4layers"])
    with pytest.raises(UserError, match="--small: not together"):
        reproduce.chosen(SimpleNamespace(small=True, everything=True))
    with pytest.raises(UserError, match="--methods obs: with --small one of activations, durable"):
        reproduce.chosen_methods(["durable", "obs"], reproduction.SMALL_UNLEARNING)


def test_full_size_is_the_study_s():
    settings = Case("noise", "increment", 2, (0,), (0, 50)).settings(0, 50)
    assert (settings.data.num_7, settings.data.num_2, settings.data.max_ctx, settings.data.duplicate) == (
        20000,
        3000,
        150,
        False,
    )
    assert (settings.training.batch_size, settings.training.lr, settings.training.epochs) == (128, 1e-3, 50)


@pytest.mark.nightly
def test_the_small_case_from_training_to_report(tmp_path):
    command = [sys.executable, "experiments/reproduce.py", "--small", f"--output_dir={tmp_path / 'out'}"]
    command += [f"--data_dir={tmp_path / 'data'}", "--device=cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "REPRODUCTION.md").read_text()
    records = load_records(tmp_path / "out" / "reproduction")
    trained = [r for r in records if r["kind"] == "train"]
    assert sorted(r["training"]["epochs"] for r in trained) == [1, 8]
    assert {shown_row(r)["method"] for r in records if r["kind"] in ("unedited", "unlearn")} == {
        "unedited",
        *reproduction.SMALL_UNLEARNING,
    }
    assert sum(r["kind"] == "as_published" for r in records) == 2
    (loss,) = (r["results"]["train_loss"] for r in trained if r["training"]["epochs"] == 8)
    assert f"| {loss:.4f} |" in text
    assert (tmp_path / "out" / "reproduction" / "figure.png").stat().st_size > 10_000
    again = subprocess.run([*command, "--list"], cwd=ROOT, capture_output=True, text=True)
    *_, commands, finished = again.stdout.splitlines()[-1].split()
    assert commands == finished


def test_the_documentation_shows_rows_of_the_report():
    report_lines = set((ROOT / "results" / "REPRODUCTION.md").read_text(encoding="utf-8").splitlines())
    _, _, chapter = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8").partition("\n## Training\n")
    table = [line for line in chapter.partition("\n## ")[0].splitlines() if line.startswith("|")]
    assert len(table) >= 5 and set(table) <= report_lines
