"""Confidence intervals, paired differences and standard errors.

Two sources of noise are separate. Seeds: another run of the same study gives other scores; the t interval of the mean
over runs covers this. Test rows: another test set from the same distribution gives other scores; all seeds share one
test set, so more seeds do not reduce this error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

FEWEST = 3
"""Minimum number of values for an interval: with two, the half width of a t interval is 12.7 standard errors."""
NORMAL = 1.96
"""97.5 % quantile of the standard normal distribution: 95 % lie within this many standard errors."""
SOLVED = 0.95
"""Zero-shot score from which a task counts as solved: there is little to learn, and so little to forget."""


@dataclass(frozen=True)
class Estimate:
    """A mean with a confidence interval.

    Args:
        mean: Mean of the values; NaN if one is NaN.
        half_width: Half width of the t interval; NaN for fewer than three values.
        count: Number of values.
    """

    mean: float
    half_width: float
    count: int

    @property
    def holds_zero(self) -> bool | None:
        """Whether the interval contains 0; None if there is no interval and the mean is not 0."""
        if self.mean == 0:
            return True
        return None if math.isnan(self.half_width) else abs(self.mean) <= self.half_width


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN where a value is NaN, or where there is none.

    >>> mean([1.0, 2.0]), mean([])
    (1.5, nan)
    """
    return fmean(values) if values else math.nan


def student_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Return the mean of runs with its t interval.

    x̄ ± t(n−1) · s / √n, s with n − 1 in the denominator   (Student, 1908)

    Args:
        values: One for each run.
        level: Confidence level, in (0, 1).

    Returns:
        The half width is NaN for fewer than three values; both are NaN if a value is NaN or there is none.

    >>> estimate = student_interval([0.1, 0.2, 0.3])
    >>> round(estimate.mean, 6), round(estimate.half_width, 6)  # 4.302653 · 0.1 / √3
    (0.2, 0.248414)
    >>> student_interval([0.1, 0.3]).half_width
    nan
    """
    count = len(values)
    if not count or any(map(math.isnan, values)):
        return Estimate(math.nan, math.nan, count)
    if count < FEWEST:
        return Estimate(fmean(values), math.nan, count)
    mean = fmean(values)
    squares = math.fsum((value - mean) ** 2 for value in values) if min(values) < max(values) else 0.0
    deviation = math.sqrt(squares / (count - 1))
    return Estimate(mean, student_quantile(level, count - 1) * deviation / math.sqrt(count), count)


def paired_difference(one: Mapping[int, float], other: Mapping[int, float], level: float = 0.95) -> Estimate:
    """Return the mean of one − other over their common seeds, with its t interval.

    Effects of a seed that both share, such as the order of rows, cancel out, so that the interval is often narrower
    than those of the two means.

    Args:
        one: Value of each seed.
        other: Value of each seed for the baseline.
        level: Confidence level, in (0, 1).

    >>> difference = paired_difference({0: 0.5, 1: 0.7, 2: 0.9, 3: 0.0}, {0: 0.4, 1: 0.5, 2: 0.6})
    >>> round(difference.mean, 6), round(difference.half_width, 6), difference.count
    (0.2, 0.248414, 3)
    """
    return student_interval([value - other[seed] for seed, value in one.items() if seed in other], level)


@cache
def student_quantile(level: float, freedom: int) -> float:
    """Return the two-sided quantile of a t distribution: the t with P(|X| ≤ t) = level.

    For integer degrees of freedom this probability is a finite sum (Abramowitz & Stegun, 26.7.3 and 26.7.4), which is
    solved for t by bisection.

    Args:
        level: Probability, in (0, 1).
        freedom: Degrees of freedom, 1 or more.

    Raises:
        ValueError: `level` is not in (0, 1), or `freedom` is below 1.

    >>> [round(student_quantile(0.95, freedom), 3) for freedom in (1, 2, 3, 4, 9, 30)]
    [12.706, 4.303, 3.182, 2.776, 2.262, 2.042]
    """
    if not 0 < level < 1 or freedom < 1:
        raise ValueError(f"level={level}, freedom={freedom}: give a level between 0 and 1, and 1 or more.")
    low, high = 0.0, math.pi / 2  # the angle: t = √ν tan θ
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Return P(|X| ≤ √ν tan θ) of a t distribution with ν = `freedom` and θ = `angle`."""
    cosine = math.cos(angle)
    term, total = (1.0, 0.0) if freedom % 2 == 0 else (cosine, 0.0)
    for step in range(freedom // 2):
        total += term
        odd = 2 * step + (1 if freedom % 2 == 0 else 2)
        term *= odd / (odd + 1) * cosine**2
    if freedom % 2 == 0:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * total)


def binomial_error(value: float, count: int) -> float:
    """Return the standard error of a proportion, √(p(1 − p)/n); NaN if p · n is no integer, so that p is none.

    At p = 0 and p = 1 it is 0, which is too small for small test sets.

    Args:
        value: p, in [0, 1].
        count: n, the number of test rows.

    >>> binomial_error(0.5, 100), binomial_error(0.503, 100)
    (0.05, nan)
    """
    hits = value * count
    if not count or math.isnan(hits) or abs(hits - round(hits)) > 1e-6:
        return math.nan
    return math.sqrt(max(0.0, value * (1 - value)) / count)


def op_error(errors: Sequence[float]) -> float:
    """Return the standard error of OP due to finite test sets: √(Σ e_i²) / T, for independent test sets.

    Args:
        errors: Standard error of each task's score; the result is NaN if one is NaN.

    >>> op_error([0.03, 0.04])
    0.025
    """
    return math.sqrt(math.fsum(error * error for error in errors)) / len(errors) if errors else math.nan


def within_test_noise(difference: float, one: float, other: float) -> bool:
    """Return True if two runs' OP differ by at most 1.96 standard errors due to their test sets.

    The two errors are combined as independent. Both runs have the same test rows, so the true error is smaller, and
    the result is True too often rather than too rarely.

    Args:
        difference: Difference of OP.
        one: Standard error of one OP.
        other: Standard error of the other OP. If one is NaN (unknown), the result is False.
    """
    return abs(difference) <= NORMAL * math.hypot(one, other)
