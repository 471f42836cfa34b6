"""Conformance suites for strategies and benchmarks, and a tiny model with tiny tasks for tests."""

from __future__ import annotations

from workbench.testing.conformance import (
    ConformanceError,
    check_benchmark,
    check_either,
    check_on_variants,
    check_strategy,
    likely_mistakes,
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
