"""Student's t without scipy, against published tables."""

import pytest

from tinymem.records.interval import mean_and_interval, over_all, t_quantile

TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "value"), TABLE.items())
def test_quantiles_of_the_published_table(freedom, value):
    assert t_quantile(0.975, freedom) == pytest.approx(value, abs=5e-4)


def test_other_levels_and_the_normal_limit():
    assert t_quantile(0.95, 7) == pytest.approx(1.895, abs=5e-4)
    assert t_quantile(0.995, 4) == pytest.approx(4.604, abs=5e-4)
    assert t_quantile(0.975, 3000) == pytest.approx(1.95996, abs=1e-3)


def test_mean_and_interval_by_hand():
    mean, half = mean_and_interval([1.0, 2.0, 3.0])  # standard deviation 1
    assert mean == 2.0 and half == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert mean_and_interval([5.0, 5.0]) == (5.0, 0.0)


def test_one_value_has_no_interval():
    assert mean_and_interval([4.0]) == (4.0, None)


def test_a_mean_over_all_lacks_none():
    assert over_all([1.0, 2.0, 3.0]) == mean_and_interval([1.0, 2.0, 3.0])
    assert over_all([1.0, None]) == over_all([]) == (None, None)
