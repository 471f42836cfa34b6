"""What seeds and test rows leave open: intervals, paired differences, and when a difference says nothing.

Two kinds of noise are kept apart. Seeds: another run of the same study would end elsewhere; the t interval of the
runs' mean says how far. Test rows: another test set, drawn alike, would give other scores, and all seeds share the
one that is there, so that more seeds do not make this smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

FEWEST = 3
"""Seeds below which no interval is given: of two, a t interval is 12.7 standard errors wide."""
NORMAL = 1.96
"""Standard errors on each side that hold 95 % of a normal distribution."""
SOLVED = 0.95
"""An untouched model's score from which on a task has nothing left to be learnt, and so to be forgotten."""


@dataclass(frozen=True)
class Estimate:
    """A mean, and how far it may be off.

    Args:
        mean: NaN where a value that it needs is.
        half_width: Of the 95 % t interval; NaN below three values.
        count: Of values.
    """

    mean: float
    half_width: float
    count: int

    @property
    def holds_zero(self) -> bool | None:
        """Whether 0 is within the interval; None without one, but where the mean is 0 itself."""
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
    """The mean of some runs with its t interval.

    x̄ ± t(n−1) · s / √n, s with n − 1 in the denominator   (Student, 1908)

    Args:
        values: One for each run.
        level: Of the interval.

    Returns:
        Without an interval below three values, and without a mean where one is NaN.

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
    middle = fmean(values)
    squares = math.fsum((value - middle) ** 2 for value in values) if min(values) < max(values) else 0.0
    deviation = math.sqrt(squares / (count - 1))
    return Estimate(middle, student_quantile(level, count - 1) * deviation / math.sqrt(count), count)


def paired_difference(one: Mapping[int, float], other: Mapping[int, float], level: float = 0.95) -> Estimate:
    """The mean of one − other over the seeds that both have, with its t interval.

    What a seed does to both alike, such as the order of rows, goes out of the difference: so the interval is often
    narrower than those of the two means.

    Args:
        one: Value by seed.
        other: The baseline's.
        level: Of the interval.

    >>> difference = paired_difference({0: 0.5, 1: 0.7, 2: 0.9, 3: 0.0}, {0: 0.4, 1: 0.5, 2: 0.6})
    >>> round(difference.mean, 6), round(difference.half_width, 6), difference.count
    (0.2, 0.248414, 3)
    """
    return student_interval([value - other[seed] for seed, value in one.items() if seed in other], level)


@cache
def student_quantile(level: float, freedom: int) -> float:
    """How many standard errors on each side hold `level` of a t distribution.

    The share within ±t is a finite sum for whole degrees of freedom (Abramowitz & Stegun, 26.7.3 and 26.7.4); the
    quantile is where it crosses `level`, found by bisection.

    Raises:
        ValueError: `level` is not within 0 … 1, or `freedom` below 1.

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
    """The share of a t distribution within ±√ν tan θ."""
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
    """The standard error of a share, √(p(1 − p)/n); NaN where p · n is no whole number, so that p is no share.

    At p = 0 and p = 1 it is 0, which says too little of small test sets.

    Args:
        value: p.
        count: n, of test rows.

    >>> binomial_error(0.5, 100), binomial_error(0.503, 100)
    (0.05, nan)
    """
    hits = value * count
    if not count or math.isnan(hits) or abs(hits - round(hits)) > 1e-6:
        return math.nan
    return math.sqrt(max(0.0, value * (1 - value)) / count)


def op_error(errors: Sequence[float]) -> float:
    """The standard error of OP that finite test sets leave: √(Σ e_i²) / T, as the tasks' rows are drawn apart.

    Args:
        errors: Of each task's score; one NaN makes all of it NaN.

    >>> op_error([0.03, 0.04])
    0.025
    """
    return math.sqrt(math.fsum(error * error for error in errors)) / len(errors) if errors else math.nan


def within_test_noise(difference: float, one: float, other: float) -> bool:
    """Whether two runs' OP differ by no more than 1.96 standard errors of their test sets.

    The errors add up as those of two test sets would. Both runs have answered the same rows, which makes the true
    error smaller: so this warns too often rather than too rarely.

    Args:
        difference: Of OP.
        one: The standard error of one.
        other: Of the other; NaN: not known, and nothing is said.
    """
    return abs(difference) <= NORMAL * math.hypot(one, other)
