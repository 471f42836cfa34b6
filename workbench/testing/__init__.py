"""Conformance suites that anyone can run on a method or a benchmark of their own, and a tiny model to run them on."""

from __future__ import annotations

from collections.abc import Callable

from workbench.benchmark import Benchmark
from workbench.strategy import ContinualStrategy
from workbench.testing.conformance import (
    ConformanceError,
    check_benchmark,
    check_on_variants,
    check_strategy,
    strategy_warnings,
)
from workbench.testing.tiny import VARIANTS, tiny_backbone, tiny_corpus, tiny_run, tiny_tasks

__all__ = [
    "VARIANTS",
    "ConformanceError",
    "check_benchmark",
    "check_either",
    "check_on_variants",
    "check_strategy",
    "likely_mistakes",
    "strategy_warnings",
    "tiny_backbone",
    "tiny_corpus",
    "tiny_run",
    "tiny_tasks",
]


def check_either(make: Callable[[], object]) -> list[str]:
    """Runs the suite that fits: `check_on_variants` or `check_benchmark`.

    Args:
        make: Gives a fresh strategy, or a benchmark, each time.

    Raises:
        ConformanceError: All that failed, or that it is neither.
    """
    made = make()
    if isinstance(made, ContinualStrategy):
        return check_on_variants(make)  # type: ignore[arg-type]
    if isinstance(made, Benchmark):
        return check_benchmark(made)
    raise ConformanceError(
        [f"{type(made).__name__} is neither a ContinualStrategy nor a Benchmark. Give one of these."]
    )


def likely_mistakes(make: Callable[[], object]) -> list[str]:
    """`strategy_warnings` of a strategy; nothing of anything else.

    Args:
        make: Gives a fresh strategy, or a benchmark, each time.
    """
    return strategy_warnings(make) if isinstance(make(), ContinualStrategy) else []  # type: ignore[arg-type]
