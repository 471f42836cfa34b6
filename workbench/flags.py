"""What a comparison cannot tell, in plain sentences: they stand beneath each table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING

from workbench.statistics import FEWEST, NORMAL, SOLVED, Estimate, within_test_noise

if TYPE_CHECKING:
    from workbench.comparison import Comparison

COMPARED = ("OP", "BWT", "forgetting", "learning_accuracy", "general_delta")


def flags(comparison: Comparison) -> list[str]:
    """Yardsticks that bound nothing, tasks solved before, differences within the noise, and too few seeds."""
    return [*_no_bounds(comparison), *_solved(comparison), *_within_noise(comparison), *_few_seeds(comparison)]


def _no_bounds(comparison: Comparison) -> Iterator[str]:
    for name, why in comparison.no_bounds.items():
        yield f"{name} is no bound here: {why}."


def _solved(comparison: Comparison) -> Iterator[str]:
    before: dict[str, list[float]] = {}
    for run in comparison.runs:
        protocol = run.environment()["protocol"]
        for task in protocol["order"]:
            before.setdefault(task, []).append(run.value(0, task, protocol["primary"][task]))
    for task, values in before.items():
        if fmean(values) >= SOLVED:
            yield f"The untouched model already solves {task} ({fmean(values):.2f}): there is nothing to forget there."


def _within_noise(comparison: Comparison) -> Iterator[str]:
    base = comparison.baseline
    for order in comparison.orders:
        where = f", order {order}" if len(comparison.orders) > 1 else ""
        for strategy in comparison.strategies:
            if strategy == base:
                continue
            told = {name: comparison.difference(strategy, base, order, name) for name in COMPARED}
            known = {name: difference for name, difference in told.items() if not math.isnan(difference.mean)}
            pair = f"{strategy} against {base}{where}"
            if known and not any(difference.mean for difference in known.values()):
                yield f"{pair}: the same numbers; within the noise, no difference."
                continue
            apart = {
                name: difference for name, difference in known.items() if difference.mean or difference.half_width > 0
            }
            noisy = [f"{name} {_signed(difference)}" for name, difference in apart.items() if difference.holds_zero]
            if noisy:
                yield f"{pair}: within the noise in {', '.join(noisy)}."
            errors = [comparison.test_error(name, order) for name in (strategy, base)]
            difference = told["OP"]
            if not difference.holds_zero and within_test_noise(difference.mean, *errors):
                limit = NORMAL * math.hypot(*errors)
                yield f"{pair}: OP {difference.mean:+.3f} is within the noise of the finite test sets (± {limit:.3f})."


def _signed(difference: Estimate) -> str:
    interval = "" if math.isnan(difference.half_width) else f" ± {difference.half_width:.3f}"
    return f"{difference.mean:+.3f}{interval}"


def _few_seeds(comparison: Comparison) -> Iterator[str]:
    counts = {
        strategy: min(len(seeds) for order in comparison.orders if (seeds := comparison.seeds(strategy, order)))
        for strategy in comparison.strategies
    }
    few = [f"{strategy} ({count})" for strategy, count in counts.items() if count < FEWEST]
    if few:
        yield f"Fewer than {FEWEST} seeds, so no interval and no test of a difference over seeds: {', '.join(few)}."
