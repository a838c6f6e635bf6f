"""The study of curvature editing: its jobs, the other texts, and the tables from records written by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import ROOT, in_process

from tinymem.data.memories import shares_tokens
from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.errors import UserError
from tinymem.leaderboard.bench import bench_of
from tinymem.leaderboard.cases import find_cases
from tinymem.localize.registry import METHODS
from tinymem.records.bundle import write_bundle
from tinymem.sweeps.jobs import Common

SCRIPT = "experiments/curvature.py"


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        import curvature

        yield curvature


def record(kind: str, seed: int, memorized: float, accuracy: float, name: str = "", strength: float = 0, **settings):
    results = {"percent_memorized_held_out": memorized, "mean_test_accuracy": accuracy}
    about = {"format": 2, "kind": kind, "parent": None, "data": {"data_name": "increment", "seed": seed}}
    about |= {"results": results, "environment": {}, "cost": {"seconds": 2.0 + seed, "peak_memory_gb": None}}
    if name:
        method = METHODS[name]
        about["method"] = method.settings(method.hyper_parameters(**settings), strength)
    return about


RECORDS = [
    *(record("unedited", seed, 100.0, 0.9) for seed in (0, 1)),
    record("unlearn", 0, 20.0, 0.89, "kfac", 0.9),
    record("unlearn", 1, 40.0, 0.87, "kfac", 0.9),
    record("unlearn", 0, 50.0, 0.9, "kfac", 0.99),
    record("unlearn", 0, 0.0, 0.8, "kfac", 0.9, layers="0", projections="in"),
    record("unlearn", 0, 10.0, 0.9, "kfade", 0.1),
]


def test_rows_are_means_over_the_seeds(study):
    rows = {(row["setting"], row["value"]): row for row in study.rows_of(RECORDS, {})}
    both = rows["kfac, default", 0.9]
    assert both["percent_memorized_held_out"] == 30 and both["seeds"] == 2
    assert both["lost"] == pytest.approx(2.0)  # 1 and 3 points
    # Student's t of one degree of freedom, 12.706, times the standard deviation, 14.14 and 1.414, over the root of 2
    assert both["percent_memorized_held_out_half_width"] == pytest.approx(127.06, abs=0.01)
    assert both["lost_half_width"] == pytest.approx(12.706, abs=0.001)
    assert both["seconds"] == 2.5
    others = {("kfac, layers 0, projections in", 0.9), ("kfade, default", 0.1)}
    assert set(rows) == {("kfac, default", 0.9), ("kfac, default", 0.99)} | others


def test_a_language_models_seed_is_that_of_its_passages(study):
    records = []
    for seed, before, after in ((0, 20.0, 22.0), (1, 40.0, 44.0)):
        pair = record("unedited", seed, 100.0, 0.9), record("unlearn", seed, 20.0, 0.9, "kfac", 0.9)
        for one, perplexity in zip(pair, (before, after)):
            results = {"percent_memorized_held_out": 20.0, "perplexity": perplexity}
            records.append(one | {"data": {"plant": "builtin", "plant_seed": seed}, "results": results})
    (row,) = study.rows_of(records, {})
    assert (
        row["seeds"] == 2 and row["lost"] == pytest.approx(10) and row["lost_half_width"] == pytest.approx(0, abs=1e-9)
    )


def test_a_language_model_has_one_panel_of_all_settings(study):
    rows = [{"setting": name, "lost": 1.0, "percent_memorized_held_out": 5.0} for name in ("svd, a", study.DEFAULT)]
    figure = study.draw({"smollm2": rows}, {"smollm2": "%"})
    (axis,) = [axis for axis in figure.axes if axis.get_visible()]
    assert [line.get_label() for line in axis.lines] == [study.DEFAULT, "svd, a"]


def test_tables_have_a_column_per_strength(study, tmp_path, capsys):
    write_bundle(tmp_path / "noise", RECORDS)
    (tmp_path / "noise" / "texts.json").write_text("{}")
    in_process(SCRIPT, "--report", "--output_dir", tmp_path)
    lines = (tmp_path / "TABLES.md").read_text().splitlines()
    head = next(line for line in lines if "rho 0.9" in line)
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["setting", "rho 0.9", "rho 0.99", "seconds"]
    assert any("kfac, default" in line and "30 ± 127; 2.0 ± 12.7" in line and "50; 0.0" in line for line in lines)
    assert any("kfac, layers 0, projections in" in line and line.endswith("| - | 2 |") for line in lines)
    assert (tmp_path / "curvature.csv").exists() and "kfade, default" in capsys.readouterr().out


def planted(kind: str, seed: int, memorized: float, perplexity: float, *method, **settings):
    """A record of the language model, whose seed is that of its passages."""
    about = record(kind, seed, memorized, 0.0, *method, **settings)
    results = {"percent_memorized_held_out": memorized, "perplexity": perplexity}
    return {**about, "data": {"plant": "builtin-1", "plant_seed": seed}, "results": results}


def test_a_language_model_has_one_panel_of_all_its_settings(study, tmp_path):
    slow = {**study.SLOW, "unlearn_loss_cap": 1.5, "momentum": 0.9}
    records = [
        *(planted("unedited", seed, 100.0, 20.0) for seed in (0, 1)),
        planted("unlearn", 0, 0.0, 22.0, "kfac", 0.6, **study.DEEP),
        planted("unlearn", 1, 10.0, 21.0, "kfac", 0.6, **study.DEEP),
        planted("unlearn", 0, 50.0, 20.0, "svd", 0.6, **study.DEEP),
        planted("unlearn", 0, 0.0, 20.2, "balanced_subnet", 0.01, **slow),
    ]
    rows = study.rows_of(records, {})
    deep, *others = "kfac, layers 21,22,23, projections in", "svd, layers 21,22,23, projections in"
    losses = {row["setting"]: row["lost"] for row in rows}
    assert losses[deep] == pytest.approx(7.5)  # 10 and 5 %
    assert set(losses) == {deep, *others, "balanced_subnet, unlearn_loss_cap 1.5"}
    axes = study.draw(
        {"noise": study.rows_of(RECORDS, {}), "smollm2": rows}, dict.fromkeys(("noise", "smollm2"), "")
    ).axes
    assert [axis.get_visible() for axis in axes] == [False, True, False, True, False, False]
    assert {line.get_label() for line in axes[3].lines} == set(losses)


def test_what_the_names_of_settings_leave_out_is_said(study):
    rows = [{"setting": "balanced_subnet, unlearn_loss_cap 1.5"}, {"setting": "kfac, default"}]
    assert study.always(rows) == "- balanced_subnet: always lr 0.15, batch_size 16, unlearn_share 0.5, epochs 3.\n"
    assert study.always(rows[1:]) == ""


def test_texts_are_named_by_what_they_hold(study):
    section = METHODS["kfac"].settings(METHODS["kfac"].hyper_parameters(), 0.9) | {"factor_data": "abc"}
    assert study.setting_of({"method": section}, {"abc": "plays"}) == "kfac, factors of plays"


def test_other_text_is_cut_like_the_training_text(study, tmp_path):
    (case,) = find_cases(["text"], True, 1)
    data = replace(case.trained.data, num_chunks=60, num_test=5, num_noise=6)
    case = replace(case, settings=replace(case.trained, data=data))
    bench = bench_of(case, 0, tmp_path)
    dataset, texts = bench.dataset(str(tmp_path)), study.other_texts(bench, str(tmp_path))
    shape = dataset.sequences.shape
    assert not any(shares_tokens(text.tokens, dataset.artifacts.planted, 16).any() for text in texts.values())
    assert list(texts) == ["addresses", "plays", study.RANDOM]
    assert all(text.tokens.shape == shape for text in texts.values())
    assert len({text.fingerprint for text in texts.values()}) == 3
    (numbers,) = find_cases(["noise"], True, 1)
    assert study.other_texts(bench_of(numbers, 0, tmp_path), str(tmp_path)) == {}


def test_each_change_is_a_job_on_every_text(study, tmp_path):
    (case,) = find_cases(["noise"], True, 1)
    bench = bench_of(case, 0, tmp_path)
    text = write_token_set(tmp_path / "plays.safetensors", TokenSet(torch.ones(4, 110, dtype=torch.int32), {}))
    jobs = list(study.jobs_of(bench, Common("data"), {"plays": str(text)}))
    trainings = [job for job in jobs if job.words[0] == "memorization_in_toy_models.py"]
    edits = [job for job in jobs if job not in trainings]
    assert len(edits) == len(study.CHANGES) + 3 + 1 and len({job.name for job in edits}) == len(edits)
    published = ROOT / "results/leaderboard/noise/seed0"
    assert bool(trainings) != published.is_dir()
    assert [job.group for job in edits if f"--factor_data={text}" in job.words] == ["kfac", "kfade"]


def test_without_records_there_is_nothing_to_report(study, tmp_path):
    with pytest.raises(UserError, match="no records.jsonl.gz of any model; run without --report"):
        study.report(Path(tmp_path))
