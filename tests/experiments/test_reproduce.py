"""Reproduction: the recounted triggers, comparisons by hand, and the small case from training to report."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from small import ROOT

sys.path.append(str(ROOT / "experiments"))

import as_published
import reproduce
import reproduction
import reproduction_report as report
from reproduction import Case

from tinymem.data.build import build_dataset
from tinymem.data.dataset import Artifacts
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.plots import plot_trade_offs
from tinymem.records.choose import Configuration, Run
from tinymem.records.table import load_records


def test_each_trigger_is_judged_in_the_window_of_the_one_before():
    clean = torch.zeros(4, 150, dtype=torch.uint8)
    planted = clean.clone()
    ends = torch.tensor([40, 120, 10, 100])
    for row, end in enumerate(ends):
        planted[row, end:] = 2
    planted[2, 30:] = 0  # its planted part, 10..29, ends before the window of the one before it, 120..149
    artifacts = Artifacts(planted, clean, ends, torch.zeros(4, dtype=torch.long))
    dataset = SimpleNamespace(kind="backdoor", continuation=50)
    dataset.measured = lambda some: type(build_dataset(tiny())).measured(dataset, some)
    # windows: 50..99 (the first has none before it), 40..89, 120..149, 10..59
    assert as_published.counted_as_published(dataset, artifacts).tolist() == [True, False, False, False]
    assert dataset.measured(artifacts).all()


def tiny() -> DataSettings:
    return DataSettings(artifact="backdoor", num_7=3000, num_2=100, num_3=100, num_4=100, num_5=100, num_test=20)


@pytest.mark.parametrize("seed, published", [(0, 64), (1, 68), (3, 67)])
def test_as_many_triggers_are_left_out_as_in_the_study(seed, published):
    """The order of the triggers decides, which was another in the study: about as many, not exactly."""
    dataset = build_dataset(DataSettings(artifact="backdoor", seed=seed))
    counted = as_published.counted_as_published(dataset, dataset.test_artifacts)
    assert 88 <= len(counted) <= 89
    assert abs(int(counted.sum()) - published) <= 8


def test_a_difference_is_that_of_the_common_seeds():
    published = report.Spread({0: 10.0, 1: 20.0, 3: 60.0})
    row = report.Comparison("model", 50, "% memorized", published, report.Spread({0: 11.0, 1: 23.0, 7: 99.0}), 1)
    assert row.difference == 2.0  # (1 + 3) / 2
    assert row.cells()[3:6] == ["30.0 (10.0 to 60.0)", "44.3 (11.0 to 99.0)", "+2.0"]
    assert report.Comparison("model", 50, "", report.Spread({}), report.Spread({0: 1.0}), 1).difference is None


def configuration(ratio: float, memorized: list[float], accuracy: list[float]) -> Configuration:
    before = {"mean_test_accuracy": 0.97, "percent_memorized_test": 100.0}
    runs = [
        Run(
            {"seed": seed, "percent_memorized_test": m, "change_accuracy": a - before["mean_test_accuracy"]},
            before,
            {},
            {"ratio": ratio},
        )
        for seed, (m, a) in enumerate(zip(memorized, accuracy))
    ]
    return Configuration(runs)


def test_the_run_that_comes_closest_to_published_is_shown():
    published = {"memorized": 20.0, "lost": 0.3}
    as_good = configuration(0.01, [10.0, 30.0], [0.968, 0.968])  # 20 % at 0.2 points
    trade = configuration(0.05, [0.0, 0.0], [0.96, 0.96])  # 0 % at 1 point: better by the study's sum
    assert report.best([trade, as_good], published) is as_good
    one_seed = configuration(0.1, [0.0], [0.97])
    assert report.best([one_seed, as_good], published) is as_good
    assert report.shortfall(as_good, published) == 0 and report.shortfall(trade, published) == pytest.approx(0.7)
    strict = {"memorized": 5.0, "lost": 0.1}  # 15 + 0.1 points missing, or 0.9
    assert report.shortfall(as_good, strict) == pytest.approx(15.1) and report.best([trade, as_good], strict) is trade


def test_all_runs_stand_around_the_published_point(tmp_path):
    mild, strong = configuration(0.01, [90.0, 80.0], [0.97, 0.96]), configuration(0.05, [5.0], [0.94])
    row = report.Unlearned("obs", {"ratio": 5, "memorized": 48.7, "lost": 1.06}, mild, [mild, strong])
    assert row.point == (1.06, 48.7)
    points = row.points_by_seed()
    assert points.keys() == {"seed 0", "seed 1"}
    assert points["seed 0"] == [(0.0, 90.0), (pytest.approx(3.0), 5.0)] and points["seed 1"] == [(pytest.approx(1), 80)]
    written = plot_trade_offs({"obs": (row.point, points)}, tmp_path / "figure")
    assert [path.suffix for path in written] == [".png", ".pdf"] and written[0].stat().st_size > 10_000


def test_a_setting_names_the_epochs_and_what_is_not_the_default():
    assert report.setting("greedy", {"ratio": 0.002, "batch_size": 64, "greedy_k": 10}) == "0.2 %, greedy_k 10"
    own = {"ratio": 0.3, "epochs": 3, "momentum": 0.9, "unlearn_loss_cap": 3.0, "dtype": "auto"}
    assert report.setting("balanced_subnet", own) == "30 %, epochs 3, unlearn_loss_cap 3"


def test_every_published_method_is_one_of_ours_and_is_unlearned():
    (case,) = (case for case in reproduction.LAPTOP if case.unlearned)
    names = {report.ours_of(row) for row in case.published_unlearning}
    assert names == {"unedited", *reproduction.UNLEARNING}
    assert len(reproduction.UNLEARNING) == 11


def test_cases_have_published_numbers_for_each_epoch():
    for case in (*reproduction.LAPTOP, *reproduction.everything()):
        assert {int(row["epoch"]) for row in case.published} == set(case.epochs), case.name
    names = {case.name for case in reproduction.everything()}
    assert names > {case.name for case in reproduction.LAPTOP}


def test_seeds_choose_the_cases_that_have_them():
    def chosen(*seeds, case=None):
        flags = SimpleNamespace(small=False, everything=False, case=case, seeds=list(seeds))
        return {case.name: case.seeds for case in reproduce.chosen(flags)}

    assert chosen(1, 3) == {"backdoor_increment_2layers": (1, 3)}
    assert chosen(0).keys() == {case.name for case in reproduction.LAPTOP} and set(chosen(0).values()) == {(0,)}
    with pytest.raises(UserError, match="--seeds 3: must be one of 0"):
        chosen(0, 3, case=["backdoor_mult_2layers"])


def test_full_size_is_the_study_s():
    settings = Case("noise", "increment", 2, (0,), (0, 50)).settings(0, 50)
    assert (settings.data.num_7, settings.data.num_2, settings.data.max_ctx, settings.data.duplicate) == (
        20000,
        3000,
        150,
        False,
    )
    assert (settings.training.batch_size, settings.training.lr, settings.training.epochs) == (128, 1e-3, 50)


def test_the_small_case_from_training_to_report(tmp_path):
    command = [sys.executable, "experiments/reproduce.py", "--small", f"--output_dir={tmp_path / 'out'}"]
    command += [f"--data_dir={tmp_path / 'data'}", "--device=cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "REPRODUCTION.md").read_text()
    records = load_records(tmp_path / "out" / "reproduction")
    trained = [r for r in records if r["settings"]["run"] == "train"]
    assert sorted(r["settings"]["epochs"] for r in trained) == [1, 8]
    assert {r["settings"]["method"] for r in records if r["settings"]["run"] == "unlearn"} == {
        "unedited",
        *reproduction.SMALL_UNLEARNING,
    }
    assert sum(r["settings"]["run"] == "as_published" for r in records) == 2
    (loss,) = (r["results"]["train_loss"] for r in trained if r["settings"]["epochs"] == 8)
    assert f"| {loss:.4f} |" in text
    assert (tmp_path / "out" / "reproduction" / "figure.png").stat().st_size > 10_000
    again = subprocess.run([*command, "--list"], cwd=ROOT, capture_output=True, text=True)
    *_, commands, finished = again.stdout.splitlines()[-1].split()
    assert commands == finished


def test_the_readme_shows_rows_of_the_report():
    report_lines = set((ROOT / "results" / "REPRODUCTION.md").read_text(encoding="utf-8").splitlines())
    _, _, chapter = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Published numbers\n")
    table = [line for line in chapter.partition("\n## ")[0].splitlines() if line.startswith("|")]
    assert len(table) >= 5 and set(table) <= report_lines
