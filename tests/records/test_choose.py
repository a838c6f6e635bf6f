"""Best runs and Pareto fronts of records made by hand."""

import math

import pytest
from handmade import TEXT, checkpoint, edited, everything, outcome, production, unlearning

from tinymem import files
from tinymem.records.choose import (
    best,
    configurations,
    experiments,
    pareto,
    pareto_front,
    seeds_of,
    twins,
    unlearning_runs,
)
from tinymem.records.cost import Cost
from tinymem.records.record import write_record
from tinymem.records.table import find_records, named_records
from tinymem.records.titles import titles


def loaded(folder, **options) -> list:
    return unlearning_runs(named_records(folder), **options)


def chosen(folder, max_perplexity_rise: float = 10.0) -> dict:
    """Method -> summary of its best configuration, of the only experiment."""
    (experiment,) = experiments(configurations(loaded(folder)))
    return {c.method: c.summary() for c in best(experiment, max_perplexity_rise)}


def test_the_configuration_with_the_lowest_mean_trade_off_wins_over_seeds(tmp_path):
    # trade-offs of seed 0 and 1: small -0.5, -0.5; large -0.9 + 0.1, -0.2 + 0.1 = -0.8, -0.1: mean -0.45
    for seed, large in ((0, 0.0), (1, 70.0)):
        runs = {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(40.0)}
        runs["obs", ("ratio", 0.3)] = outcome(large, 0.8)
        unlearning(tmp_path / str(seed), checkpoint(seed), runs)
    row = chosen(tmp_path)["obs"]
    assert row["method.ratio"] == 0.1 and row["n"] == 2 and row["seeds"] == "0 1"
    assert row["trade_off"] == pytest.approx(-0.5) and row["trade_off_ci95"] == pytest.approx(0)
    assert row["change_memorized"] == -50 and row["percent_memorized_train"] == 40
    assert row["training.epoch"] == 50 and "fingerprints.weights" not in row


def test_mean_and_interval_of_three_seeds_by_hand(tmp_path):
    for seed, memorized in ((0, 10.0), (1, 20.0), (3, 30.0)):
        runs = {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(memorized)}
        unlearning(tmp_path / str(seed), checkpoint(seed), runs)
    row = chosen(tmp_path)["obs"]
    assert row["percent_memorized_train"] == 20
    assert row["percent_memorized_train_ci95"] == pytest.approx(4.3027 * 10 / 3**0.5, rel=1e-4)


def test_a_configuration_with_fewer_seeds_than_others_is_no_candidate(tmp_path):
    lucky = {("obs", ("ratio", 0.3)): outcome(0.0)}
    for seed in (0, 1):
        runs = {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(40.0)}
        unlearning(tmp_path / str(seed), checkpoint(seed), runs | (lucky if seed else {}))
    assert chosen(tmp_path)["obs"]["method.ratio"] == 0.1


def elsewhere(folder, seed: int, weights: str, memorized: float) -> None:
    """Writes the record of an edit that was made elsewhere."""
    identity = {**edited(checkpoint(seed), "theirs", weights=weights), "kind": "measured"}
    write_record(folder / str(seed), identity, outcome(memorized), Cost(1.0, None), "cpu")


def test_edits_that_were_made_elsewhere_are_one_configuration_by_their_name(tmp_path):
    for seed, memorized in ((0, 10.0), (1, 50.0)):
        unlearning(tmp_path / str(seed), checkpoint(seed), {("unedited",): outcome(90.0)})
        elsewhere(tmp_path, seed, f"w{seed}", memorized)
    row = chosen(tmp_path)["theirs"]
    assert row["n"] == 2 and row["percent_memorized_train"] == 30 and "method.weights" not in row
    elsewhere(tmp_path, 1, "others", 0.0)  # two of one seed: nobody knows which belongs to which of the other
    row = chosen(tmp_path)["theirs"]
    assert (row["n"], row["percent_memorized_train"], row["method.weights"]) == (1, 0, "others")


def test_a_single_seed_has_no_interval(tmp_path):
    unlearning(tmp_path, checkpoint(), {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(40.0)})
    row = chosen(tmp_path)["obs"]
    assert row["n"] == 1 and row["perplexity"] == 2.0 and row["perplexity_ci95"] is None


@pytest.mark.parametrize("identity", [checkpoint(**TEXT), production()])
def test_on_text_and_production_models_perplexity_limits_the_choice(tmp_path, identity):
    runs = {("unedited",): outcome(50.0, None, 20.0)}
    for ratio, memorized, perplexity in ((0.1, 30.0, 20.5), (0.2, 10.0, 22.0), (0.3, 0.0, 23.0)):
        runs["obs", ("ratio", ratio)] = outcome(memorized, None, perplexity)
    runs["subnet", ("ratio", 0.1)] = outcome(0.0, None, 90.0)
    unlearning(tmp_path, identity, runs)
    assert chosen(tmp_path, 5)["obs"]["method.ratio"] == 0.1
    row = chosen(tmp_path, 10)["obs"]  # 22 is exactly 10 % more than 20
    assert (
        row["method.ratio"] == 0.2 and row["perplexity_rise_percent"] == pytest.approx(10) and row["trade_off"] is None
    )
    assert chosen(tmp_path, 15)["obs"]["method.ratio"] == 0.3
    assert list(chosen(tmp_path, 15)) == ["unedited", "obs"]  # no run of subnet is within the limit


def test_validation_sequences_alone_choose_settings_where_all_have_them(tmp_path):
    def trial(memorized, validation, accuracy=0.9, perplexity=2.0) -> dict:
        return outcome(memorized, accuracy, perplexity, percent_memorized_validation=validation)

    # numbers: 30 % at no loss is worse than 0 % at 20 points, though all sequences together say the opposite
    runs = {("unedited",): trial(90.0, 90.0)}
    runs |= {("obs", ("ratio", 0.1)): trial(10.0, 30.0), ("obs", ("ratio", 0.2)): trial(40.0, 0.0, 0.7)}
    unlearning(tmp_path / "numbers", checkpoint(), runs)
    assert chosen(tmp_path / "numbers")["obs"]["method.ratio"] == 0.2
    # text: the same, within the limit of perplexity
    runs = {("unedited",): trial(90.0, 90.0, None, 20.0)}
    runs |= {
        ("obs", ("ratio", 0.1)): trial(10.0, 30.0, None, 20.0),
        ("obs", ("ratio", 0.2)): trial(40.0, 0.0, None, 21.0),
    }
    unlearning(tmp_path / "text", production(), runs | {("obs", ("ratio", 0.3)): trial(0.0, 0.0, None, 30.0)})
    assert chosen(tmp_path / "text")["obs"]["method.ratio"] == 0.2
    # a run without is no candidate
    unlearning(tmp_path / "text", production(), {("obs", ("ratio", 0.05)): outcome(5.0, None, 20.0)})
    assert chosen(tmp_path / "text")["obs"]["method.ratio"] == 0.2


def test_among_equals_the_run_that_zeroes_least_wins(tmp_path):
    runs = {("unedited",): outcome(90.0)}
    runs |= {("obs", ("ratio", ratio)): outcome(0.0, percent_zeroed=100 * ratio) for ratio in (0.3, 0.1, 0.2)}
    unlearning(tmp_path, checkpoint(), runs)
    assert chosen(tmp_path)["obs"]["method.ratio"] == 0.1


def test_a_mean_is_over_all_seeds_or_there_is_none(tmp_path):
    for seed, samples in enumerate((40.0, math.inf)):  # infinite: records hold null
        runs = {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(0.0, median_n_train=samples)}
        unlearning(tmp_path / str(seed), checkpoint(seed), runs)
    row = chosen(tmp_path)["obs"]
    assert row["n"] == 2 and row["median_n_train"] is None and row["median_n_train_ci95"] is None
    assert row["perplexity"] == 2.0


def test_an_infinite_perplexity_is_not_the_lowest(tmp_path):
    runs = {("unedited",): outcome(90.0)}
    runs |= {("obs", ("ratio", ratio)): outcome(0.0, perplexity=ppl) for ratio, ppl in ((0.1, math.inf), (0.2, 3.0))}
    unlearning(tmp_path, checkpoint(), runs)
    assert chosen(tmp_path)["obs"]["method.ratio"] == 0.2


def test_experiments_differ_in_more_than_the_seed(tmp_path):
    groups = experiments(configurations(loaded(everything(tmp_path))))
    names = titles([group[0].experiment for group in groups])
    assert sorted(names) == [
        "increment, backdoor, 2 layers, epoch 50", "increment, backdoor, 4 layers, epoch 50",
        "pythia-160m, step 143000", "pythia-160m, step 36000", "wiki_fast, noise, 2 layers, epoch 50",
    ]  # fmt: skip
    assert [len(c.runs) for group in groups for c in group if c.on_numbers] == [2] * 10


def test_titles_name_a_users_file_without_its_folder_and_a_digest_only_where_names_are_alike():
    def text(corpus: str, digest: str) -> dict:
        return {
            "data.data_name": "wiki", "model.n_layers": 1, "data.corpus": corpus, "data.corpus_sha256": digest * 64
        }  # fmt: skip

    assert titles([text("/x/a.txt", "1")]) == ["wiki, 1 layer"]
    two = [text("/x/a.txt", "1"), text("/y/b.txt", "2")]
    assert titles(two) == ["wiki, 1 layer, corpus a.txt", "wiki, 1 layer, corpus b.txt"]
    two[1]["data.corpus"] = "/y/a.txt"
    assert titles(two) == [f"wiki, 1 layer, corpus a.txt, corpus_sha256 {digit * 8}" for digit in "12"]
    models = [{"model.name": f"/{folder}/mine"} for folder in ("x", "y")]
    assert titles(models[:1]) == ["mine"] and titles(models) == ["/x/mine", "/y/mine"]


def test_the_front_by_hand():
    points = [(0, 0.5), (0, 0.7), (10, 0.7), (10, 0.8), (20, 0.75), (90, 0.9), (95, 0.9)]
    assert pareto_front(points) == [(0, 0.7), (10, 0.8), (90, 0.9)]


def test_pareto_keeps_the_runs_that_no_other_beats_of_each_checkpoint(tmp_path):
    runs = {("unedited",): outcome(90.0, 0.9), ("obs", ("ratio", 0.1)): outcome(20.0, 0.85)}
    runs["obs", ("ratio", 0.2)], runs["durable", ("ratio", 0.1)] = outcome(20.0, 0.80), outcome(0.0, 0.5)
    unlearning(tmp_path / "a", checkpoint(0), runs)
    unlearning(
        tmp_path / "b", checkpoint(1), {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(95.0, 0.8)}
    )
    first, second = pareto(loaded(tmp_path))
    assert [(run.method, run.hyper_parameters.get("ratio")) for run in first] == [
        ("durable", 0.1), ("obs", 0.1), ("unedited", None)
    ]  # fmt: skip
    assert [run.method for run in second] == ["unedited"]


def test_pareto_on_text_prefers_low_perplexity(tmp_path):
    runs = {("unedited",): outcome(50.0, None, 20.0), ("obs", ("ratio", 0.1)): outcome(50.0, None, 25.0)}
    unlearning(tmp_path, checkpoint(**TEXT), runs)
    assert [run.method for run in pareto(loaded(tmp_path))[0]] == ["unedited"]


def test_runs_of_other_versions_are_never_averaged_or_compared(tmp_path):
    runs = {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(40.0)}
    for seed in (0, 1):
        unlearning(tmp_path / str(seed), checkpoint(seed), runs)
    for path in find_records(tmp_path / "1"):
        record = files.read_json(path)
        record["environment"]["torch"] = "1.0"
        files.write_json(path, record)
    groups = experiments(configurations(loaded(tmp_path)))
    assert [len(c.runs) for group in groups for c in best(group, 10)] == [1] * 4 and len(pareto(loaded(tmp_path))) == 2
    unedited = next(path for path in find_records(tmp_path / "1") if files.read_json(path)["kind"] == "unedited")
    unedited.unlink()
    said = []
    left = loaded(tmp_path, warn=said.append)
    assert len(left) == 2 and "no record of the unedited model" in said[0] and "1 of 3 runs" in said[0]


def test_a_run_in_two_folders_counts_once_and_unmeasured_runs_are_left_out(tmp_path):
    runs = {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(40.0)}
    for copy in ("a", "b"):
        unlearning(tmp_path / copy, checkpoint(), runs)
    unlearning(tmp_path / "a", checkpoint(), {("obs", ("ratio", 0.2)): outcome(None), ("subnet",): outcome(1.0, None)})
    said = []
    assert [run.method for run in loaded(tmp_path, warn=said.append)] == ["unedited", "obs"]
    assert len(said) == 1 and "without a value of " in said[0] and "2 of 6 runs" in said[0]


def test_a_run_recorded_twice_with_different_results_is_said(tmp_path):
    for copy, memorized in (("a", 40.0), ("b", 30.0)):
        unlearning(tmp_path / copy, checkpoint(), {("unedited",): outcome(90.0), ("obs",): outcome(memorized)})
    said = []
    _, run = loaded(tmp_path, warn=said.append)
    assert run.row["percent_memorized_train"] == 30 and run.row["record"].startswith("b/")
    assert (
        len(said) == 1
        and "with different results: 1 of 2 runs" in said[0]
        and f"such as {run.row['record']}" in said[0]
    )


def test_a_seed_that_was_trained_twice_is_said(tmp_path):
    runs = {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(40.0)}
    unlearning(tmp_path, checkpoint(), runs)
    unlearning(tmp_path, checkpoint(1), runs)
    said = []
    loaded(tmp_path, warn=said.append)
    assert not said
    unlearning(tmp_path, {**checkpoint(), "fingerprints": {"weights": "others", "forget_set": "t"}}, runs)
    loaded(tmp_path, warn=said.append)
    assert (
        len(said) == 1 and "more than once with the same seed (column `fingerprints.weights`): 1 of 2 models" in said[0]
    )


def test_methods_come_in_the_order_asked_for(tmp_path):
    runs = {(name,): outcome(9.0) for name in ("subnet", "obs", "unedited", "zero_out")}
    unlearning(tmp_path, checkpoint(), runs)
    order = [run.method for run in loaded(tmp_path, order=("zero_out", "subnet"))]
    assert order == ["unedited", "zero_out", "subnet", "obs"]


def test_the_model_before_planting_is_no_rival(tmp_path):
    """It memorizes nothing at the best perplexity, and would be the best method and all of the front."""
    runs = {("unedited",): outcome(100.0, perplexity=20.0), ("never_planted",): outcome(0.0, perplexity=10.0)}
    unlearning(tmp_path, checkpoint(**TEXT), runs | {("durable", ("ratio", 0.1)): outcome(5.0, perplexity=21.0)})
    found = unlearning_runs(named_records(tmp_path))
    assert [run.method for run in found] == ["unedited", "durable"]


def test_a_twin_counts_once_however_many_runs_its_model_has(tmp_path):
    for seed, ratios in ((0, (0.1, 0.2, 0.3)), (1, (0.1,))):
        runs = {("obs", ("ratio", ratio)): outcome(40.0) for ratio in ratios}
        known = {("unedited",): outcome(90.0, 0.9), ("never_planted",): outcome(10.0 * seed, 0.9 - 0.1 * seed)}
        unlearning(tmp_path / str(seed), checkpoint(seed), {**known, **runs})
    rows = twins(loaded(tmp_path))
    assert [row["percent_memorized_train"] for row in rows] == [0.0, 10.0]
    assert [row["change_accuracy"] for row in rows] == pytest.approx([0.0, -0.1])


def test_only_number_models_have_a_trade_off(tmp_path):
    unlearning(tmp_path, checkpoint(**TEXT), {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(10.0)})
    assert {run.row["trade_off"] for run in loaded(tmp_path)} == {None}


def test_models_with_other_planted_passages_are_seeds_of_one_experiment(tmp_path):
    for seed in (0, 1):
        identity = {**production(plant="builtin", plant_seed=seed), "training": {"planted_model": f"planted_{seed}"}}
        runs = {("unedited",): outcome(90.0, None, 20.0), ("obs", ("ratio", 0.1)): outcome(40.0 + seed, None, 20.0)}
        unlearning(tmp_path / str(seed), identity, runs)
    row = chosen(tmp_path)["obs"]
    assert (row["n"], row["seeds"], row["percent_memorized_train"]) == (2, "0 1", 40.5)


def test_seeds_name_what_varies(tmp_path):
    for seed, unlearn_seed in ((0, 0), (0, 1), (1, 0)):
        identity = checkpoint(seed)
        identity = {**identity, "forget": {"unlearn_seed": unlearn_seed}}
        runs = {("unedited",): outcome(90.0), ("obs", ("ratio", 0.1)): outcome(40.0)}
        unlearning(tmp_path / f"{seed}{unlearn_seed}", identity, runs)
    assert chosen(tmp_path)["obs"]["seeds"] == "0/0 0/1 1/0"
    assert seeds_of([run for run in loaded(tmp_path) if run.row["data.seed"] == 0 and run.method == "obs"]) == "0 1"
