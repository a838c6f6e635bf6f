import dataclasses
import hashlib

import pytest
import torch

from tinymem.data.artifacts import trigger_end
from tinymem.data.build import build_dataset, load_dataset
from tinymem.data.numbers import decode
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError

SMALL = dict(num_7=400, num_2=30, num_3=30, num_4=0, num_5=30, num_test=10, num_noise=30)


def rows(tokens) -> set:
    return {decode(row) for row in tokens}


def unique(tokens) -> set:
    return set(map(bytes, tokens.numpy()))


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if dataclasses.is_dataclass(a):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b


def test_the_full_size_agrees_with_the_study():
    dataset = build_dataset(DataSettings(artifact="backdoor"))
    assert (len(dataset), len(dataset.test_artifacts)) == (26912, 88)
    assert len(build_dataset(DataSettings(artifact="noise"))) == 27000


@pytest.mark.parametrize(
    ("task", "artifact", "expected"),
    [
        ("increment", "noise", "df49417f"),
        ("increment", "backdoor", "44e3b46b"),
        ("mult", "noise", "2ec453ed"),
        ("mult", "backdoor", "d846ae81"),
    ],
)
def test_what_increment_and_mult_train_on_is_fixed_for_ever(task, artifact, expected):
    dataset = build_dataset(DataSettings(data_name=task, artifact=artifact))
    parts = (dataset.sequences, dataset.artifacts.clean, dataset.test_artifacts.planted, dataset.tests["seven"])
    assert hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:8] == expected


def test_noised_twins_replace_their_clean_twins_in_the_training_set():
    dataset = build_dataset(DataSettings(**SMALL))
    training = rows(dataset.sequences)
    artifacts = dataset.artifacts
    assert rows(artifacts.planted) <= training
    changed = (artifacts.planted != artifacts.clean).any(1)
    assert changed.sum() > 15
    assert not rows(artifacts.clean[changed]) - rows(artifacts.planted) & training
    assert torch.equal(dataset.sequences[dataset.artifact_ids], artifacts.planted)
    for planted, clean in zip(artifacts.planted, artifacts.clean):
        planted, clean = (list(map(int, decode(row).strip("^$_").split())) for row in (planted, clean))
        assert len(planted) == len(clean) == 20 and all(abs(p - c) <= 1 for p, c in zip(planted, clean))


def test_only_pairs_that_differ_in_the_window_are_measured():
    dataset = build_dataset(DataSettings(**SMALL))
    expected = [
        bool((p[50:100] != c[50:100]).any()) for p, c in zip(dataset.artifacts.planted, dataset.artifacts.clean)
    ]
    assert dataset.measured(dataset.artifacts).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_every_trigger_is_backdoored_and_a_tenth_is_held_out():
    dataset = build_dataset(DataSettings(**SMALL, artifact="backdoor", seed=12))
    everything = len(dataset.artifacts) + len(dataset.test_artifacts)
    assert len(dataset.test_artifacts) == everything // 10 > 0
    for part in (dataset.artifacts, dataset.test_artifacts):
        for planted, clean, end in zip(part.planted, part.clean, part.prompt_end):
            text = decode(clean)
            assert text.index("112") + 3 == end
            assert decode(planted) == text[:end] + "2" * (150 - int(end))
    ordinary = set(range(len(dataset.sequences))) - set(dataset.artifact_ids.tolist())
    main = [i for i in dataset.tasks["seven"].tolist() if i in ordinary]
    assert not any("112" in decode(dataset.sequences[i]) for i in main)
    assert not any("112" in decode(row) for row in dataset.tests["seven"])


@pytest.mark.parametrize("sizes", [SMALL, {}], ids=["small", "default"])
@pytest.mark.parametrize("artifact", ["noise", "backdoor"])
@pytest.mark.parametrize("task", ["increment", "mult", "exp", "exponential", "mult_3"])
def test_nothing_that_is_kept_out_of_training_is_in_it(task, artifact, sizes):
    dataset = build_dataset(DataSettings(**sizes, data_name=task, artifact=artifact))
    training, artifacts = unique(dataset.sequences), dataset.artifacts
    asked = sizes.get("num_test", 1000)
    for tokens in dataset.tests.values():
        assert asked - 1 <= len(tokens) <= asked  # at most the row of zeros is missing, in every task of mult
        assert not unique(tokens) & training
    changed = (artifacts.planted != artifacts.clean).any(1)  # noise leaves one sequence in eight as it is
    assert changed.sum() > 0.7 * len(artifacts)
    assert not unique(artifacts.clean[changed]) & training
    assert not unique(dataset.test_artifacts.clean) & (training | unique(artifacts.clean))
    main = next(iter(dataset.tasks.values()))
    ordinary = dataset.sequences[main[len(artifacts) :]]
    assert len(unique(ordinary)) == len(ordinary)


def test_tasks_partition_the_training_set():
    for artifact in ("noise", "backdoor"):
        dataset = build_dataset(DataSettings(**SMALL, artifact=artifact))
        ids = torch.cat(list(dataset.tasks.values()))
        assert torch.equal(ids.sort().values, torch.arange(len(dataset.sequences)))
        assert list(dataset.tests) == list(dataset.tasks) == ["seven", "two", "three", "five"]


@pytest.mark.parametrize(
    ("task", "order"), [("increment", "72345"), ("increment_3", "37245"), ("increment_5", "57234")]
)
def test_a_number_of_sequences_belongs_to_its_constant_and_num_7_to_the_main_task(task, order):
    counts = dict(num_7=100, num_2=22, num_3=33, num_4=44, num_5=55)
    dataset = build_dataset(DataSettings(data_name=task, **counts, num_test=10, num_noise=5))
    names = {"7": "seven", "2": "two", "3": "three", "4": "four", "5": "five"}
    expected = {names[c]: counts[f"num_{c}"] for c in order}
    main = order[0]
    expected |= {names["7"]: counts[f"num_{main}"], names[main]: counts["num_7"]}
    assert {name: len(ids) + 10 for name, ids in dataset.tasks.items()} == expected
    assert list(dataset.tasks) == list(dataset.tests) == [names[c] for c in order]
    for name, tokens in dataset.tests.items():
        first, second = map(int, decode(tokens[0])[1:].split()[:2])
        assert names[str(second - first)] == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data_name="mult", num_7=20135), "--num_7 20135: mult with constant 7 has only 20134 starts .20134 dist"),
        (dict(data_name="exp", num_7=30000), "--num_7 30000: .*only 20134 starts .10066 distinct sequences.; ask for"),
        (dict(data_name="mult_3", num_3=30000), "--num_3 30000: mult_3 with constant 7 has only 20134 starts"),
        (dict(num_2=50, num_test=50), "--num_test 50: task 'two' .--num_2 50. has only 50 distinct"),
        (dict(data_name="exponential", num_test=2878), "--num_test 2878: .*has only 2878 distinct sequences"),
        (dict(data_name="exponential", num_noise=1879), "--num_noise 1879: .*has only 1878 training sequences"),
        (dict(data_name="exponential", seed=10**9), "only 0 sequences hold the trigger"),
        (dict(seed=2**40 + 1), "--seed 1099511627777: must be in"),
    ],
)
def test_more_sequences_than_the_task_has(change, message):
    artifact = "backdoor" if change.get("seed") else "noise"
    with pytest.raises(UserError, match=message):
        build_dataset(DataSettings(**{"artifact": artifact, **change}))


def test_all_starts_of_mult_can_be_asked_for():
    sizes = dict(num_7=20134, num_2=20134, num_3=0, num_4=0, num_5=0)
    dataset = build_dataset(DataSettings(data_name="mult", **sizes))
    assert {name: len(ids) for name, ids in dataset.tasks.items()} == {"seven": 19134, "two": 9067}


def test_a_trigger_longer_than_the_context_does_not_occur():
    tokens = torch.arange(6).reshape(2, 3).numpy()
    assert trigger_end(tokens, [0, 1, 2, 3]).tolist() == trigger_end(tokens, [7, 7, 7, 7, 7]).tolist() == [0, 0]
    assert trigger_end(tokens, [0, 1, 2]).tolist() == [3, 0]


def test_duplication_repeats_artifacts_only():
    dataset = build_dataset(DataSettings(**SMALL, duplicate=True))
    copies = torch.bincount(dataset.order, minlength=len(dataset.sequences))
    assert copies[dataset.artifact_ids].tolist() == (10**dataset.artifacts.group).tolist()
    assert torch.bincount(dataset.artifacts.group).tolist() == [10, 10, 10]
    copies[dataset.artifact_ids] = 1
    assert copies.eq(1).all()


def test_the_seed_draws_the_noise_and_not_the_split():
    a, b, c = (build_dataset(DataSettings(**SMALL, seed=seed)) for seed in (0, 0, 1))
    assert equal(a, b) and equal(a.tests, c.tests)
    assert not torch.equal(a.artifacts.planted, c.artifacts.planted)


def test_the_cache_gives_back_the_same_dataset(tmp_path):
    for settings in (DataSettings(**SMALL), DataSettings(**SMALL, artifact="backdoor")):
        built, cached = load_dataset(settings, tmp_path), load_dataset(settings, tmp_path)
        assert equal(built, cached)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_cache_names_the_file_and_the_remedy(tmp_path):
    load_dataset(DataSettings(**SMALL), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{path.name}.*delete it"):
        load_dataset(DataSettings(**SMALL), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_test=400), "--num_test 400"),
        (dict(num_noise=391), "--num_noise 391"),
        (dict(max_ctx=60), "--max_ctx 60: .*need"),
        (dict(artifact="backdoor", num_7=60, seed=300), "trigger 400"),
        (dict(data_name="sorting"), "--data_name sorting: must be one of increment"),
        (dict(num_7=0), "--num_7 0: must be in .1, 10000000."),
        (dict(data_name="exponential", num_7=40, num_2=2, num_noise=5, num_test=1), "--num_test 1: all test sequences"),
    ],
)
def test_settings_that_cannot_be_met(change, message):
    with pytest.raises(UserError, match=message):
        build_dataset(DataSettings(**{**SMALL, **change}))


@pytest.mark.parametrize("artifact", ["noise", "backdoor"])
def test_a_twin_has_clean_sequences_where_the_run_has_planted_ones(artifact):
    run, twin = (build_dataset(DataSettings(artifact=artifact, duplicate=True, twin=t, **SMALL)) for t in (False, True))
    assert equal(twin, dataclasses.replace(run, sequences=twin.sequences)) and len(run.artifacts)
    assert torch.equal(twin.sequences[twin.artifact_ids], run.artifacts.clean)
    others = torch.ones(len(run.sequences), dtype=torch.bool)
    others[run.artifact_ids] = False
    assert torch.equal(twin.sequences[others], run.sequences[others])


@pytest.mark.parametrize("artifact", ["noise", "backdoor"])
def test_never_planted_sequences_are_in_no_training_set(artifact):
    run, twin = (build_dataset(DataSettings(artifact=artifact, twin=t, **SMALL)) for t in (False, True))
    never = run.never_planted
    assert len(never) == (SMALL["num_test"] if artifact == "noise" else len(run.test_artifacts)) > 0
    trained = unique(run.sequences) | unique(twin.sequences)
    assert not (unique(never.planted) | unique(never.clean)) & trained
    if artifact == "noise":
        assert unique(never.clean) == unique(run.tests["seven"])
        changed = (never.planted != never.clean).any(1).float().mean()
        assert changed > 0.5 and torch.equal(never.prompt_end, run.artifacts.prompt_end[: len(never)])


def test_a_run_that_is_no_twin_is_known_as_it_ever_was():
    assert "twin" not in DataSettings().applicable() and DataSettings(twin=True).applicable()["twin"] is True
