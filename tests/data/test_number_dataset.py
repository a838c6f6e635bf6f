import dataclasses

import pytest
import torch

from tinymem.data.build import build_dataset, load_dataset
from tinymem.data.numbers import decode
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError

SMALL = dict(num_7=400, num_2=30, num_3=30, num_4=0, num_5=30, num_test=10, num_noise=30)


def rows(tokens) -> set:
    return {decode(row) for row in tokens}


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


def test_nothing_is_in_both_training_and_test_and_tasks_partition_the_training_set():
    for kind in ("noise", "backdoor"):
        dataset = build_dataset(DataSettings(**SMALL, artifact=kind))
        for name, tokens in dataset.tests.items():
            assert len(tokens) == 10
            assert not rows(tokens) & rows(dataset.sequences[dataset.tasks[name]])
        ids = torch.cat(list(dataset.tasks.values()))
        assert torch.equal(ids.sort().values, torch.arange(len(dataset.sequences)))
        assert list(dataset.tests) == list(dataset.tasks) == ["seven", "two", "three", "five"]


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
        (dict(num_7=0), "--num_7 0: must be >= 1"),
    ],
)
def test_settings_that_cannot_be_met(change, message):
    with pytest.raises(UserError, match=message):
        build_dataset(DataSettings(**{**SMALL, **change}))
