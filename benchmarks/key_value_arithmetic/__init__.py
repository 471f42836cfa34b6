"""CALM's key-value arithmetic: one model knows the keys, another arithmetic, and a composition needs both."""

from __future__ import annotations

from benchmarks.key_value_arithmetic.benchmark import KeyValueArithmetic
from benchmarks.key_value_arithmetic.pretrain import Pretrain

__all__ = ["KeyValueArithmetic", "Pretrain"]
