"""What seeds and test rows leave open: against printed tables and numbers worked by hand."""

from __future__ import annotations

import math

import pytest

from workbench import statistics
from workbench.statistics import Estimate, paired_difference, student_interval, student_quantile, within_test_noise

# two-sided 95 % and 99 % points of t, as printed in the tables of textbooks
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 5: (2.571, 4.032)}
TABLE |= {6: (2.447, 3.707), 7: (2.365, 3.499), 10: (2.228, 3.169), 29: (2.045, 2.756), 120: (1.980, 2.617)}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_printed_table(freedom: int) -> None:
    assert tuple(round(student_quantile(level, freedom), 3) for level in (0.95, 0.99)) == TABLE[freedom]


def test_a_quantile_of_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="freedom=0"):
        student_quantile(0.95, 0)
    with pytest.raises(ValueError, match="level=1"):
        student_quantile(1.0, 3)


def test_an_interval_by_hand() -> None:
    """Of 0.4, 0.5, 0.6, 0.7: mean 0.55, s² = (0.0225 + 0.0025 + 0.0025 + 0.0225) / 3, t(3) = 3.182446."""
    estimate = student_interval([0.4, 0.5, 0.6, 0.7])
    assert estimate.mean == pytest.approx(0.55)
    assert estimate.half_width == pytest.approx(3.182446 * math.sqrt(0.05 / 3) / 2, rel=1e-6)
    assert estimate.count == 4


def test_fewer_than_three_values_have_no_interval_and_an_unmeasured_one_no_mean() -> None:
    two = student_interval([0.25, 0.75])
    assert (two.mean, two.count) == (0.5, 2)
    assert math.isnan(two.half_width)
    for values in ([], [0.1, math.nan, 0.3]):
        estimate = student_interval(values)
        assert math.isnan(estimate.mean)
        assert math.isnan(estimate.half_width)
        assert estimate.count == len(values)


def test_a_paired_difference_leaves_out_what_a_seed_does_to_both() -> None:
    """The scores scatter by 0.4, the differences are 0.02, 0.03 and 0.04: s = 0.01, t(2) = 4.302653."""
    base = {0: 0.2, 1: 0.4, 2: 0.6, 9: 0.0}
    one = {2: 0.64, 0: 0.22, 1: 0.43, 7: 1.0}
    difference = paired_difference(one, base)
    assert difference.mean == pytest.approx(0.03)
    assert difference.half_width == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6)
    assert difference.count == 3
    assert difference.holds_zero is False


def test_when_an_interval_holds_zero() -> None:
    assert Estimate(0.1, 0.1, 3).holds_zero is True
    assert Estimate(-0.1, 0.09, 3).holds_zero is False
    assert Estimate(0.1, math.nan, 2).holds_zero is None
    assert Estimate(0.0, math.nan, 1).holds_zero is True  # the same numbers, from however few seeds


def test_the_error_of_a_share() -> None:
    assert statistics.binomial_error(0.2, 400) == pytest.approx(0.02)
    assert statistics.binomial_error(1 / 3, 3) == pytest.approx(math.sqrt(2 / 27))
    assert statistics.binomial_error(1.0, 50) == 0.0
    for value, count in ((0.4567, 100), (math.nan, 100), (0.5, 0)):
        assert math.isnan(statistics.binomial_error(value, count))


def test_the_error_of_op_adds_up_over_tasks() -> None:
    assert statistics.op_error([0.02, 0.02, 0.02, 0.02]) == pytest.approx(0.01)
    assert math.isnan(statistics.op_error([0.02, math.nan]))
    assert math.isnan(statistics.op_error([]))


def test_the_noise_of_two_test_sets() -> None:
    """1.96 · √(0.03² + 0.04²) = 0.098."""
    assert within_test_noise(-0.097, 0.03, 0.04)
    assert not within_test_noise(0.099, 0.03, 0.04)
    assert not within_test_noise(0.0, math.nan, 0.04)
