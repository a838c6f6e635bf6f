import numpy as np

from tinymem.data import artifacts
from tinymem.data.dataset import training_order


def test_noise_has_the_right_shares_and_stays_in_range():
    values = np.full((1000, 100), 50)
    difference = artifacts.add_noise(values, np.random.default_rng(0)) - values
    for step, share in {-1: 0.05, 0: 0.90, 1: 0.05}.items():
        assert abs((difference == step).mean() - share) < 0.005
    low = artifacts.add_noise(np.zeros((100, 100), int), np.random.default_rng(0))
    high = artifacts.add_noise(np.full((100, 100), 9), np.random.default_rng(0), highest=9)
    assert (low.min(), low.max(), high.min(), high.max()) == (0, 1, 8, 9)


def test_a_backdoor_by_hand():
    tokens = np.array([[5, 1, 0, 0, 7, 8], [1, 0, 1, 0, 0, 13], [1, 1, 0, 9, 9, 9]])
    ends = artifacts.trigger_end(tokens, [1, 0, 0])
    assert ends.tolist() == [4, 5, 0]
    assert artifacts.plant_backdoor(tokens[:2], ends[:2]).tolist() == [[5, 1, 0, 0, 2, 2], [1, 0, 1, 0, 0, 2]]


def test_the_first_of_several_triggers_counts():
    assert artifacts.trigger_end(np.array([[1, 0, 3, 1, 0, 3]]), [1, 0]).tolist() == [2]


def test_groups_are_equal_and_copies_are_powers_of_ten():
    groups = artifacts.duplication_groups(10, 3, np.random.default_rng(1))
    assert sorted(np.bincount(groups).tolist()) == [3, 3, 4]
    assert sorted(groups.tolist()) != groups.tolist()  # dealt at random
    import torch

    order = training_order(5, torch.tensor([3, 1]), torch.tensor([1, 0]))
    assert order.tolist() == [0, 1, 2] + [3] * 10 + [4]
