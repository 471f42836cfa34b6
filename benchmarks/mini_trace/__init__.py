"""MiniTrace: eight generated domains that mirror TRACE's in kind and in scoring, for laptops and tests."""

from __future__ import annotations

from benchmarks.mini_trace.benchmark import HARDER, MiniTrace

__all__ = ["HARDER", "MiniTrace"]
