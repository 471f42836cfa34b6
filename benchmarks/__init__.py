"""Benchmarks: one benchmark, one file or folder."""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "CipherLanguage": "cipher_language",
    "KeyValueArithmetic": "key_value_arithmetic",
    "Lesson": "lesson",
    "MiniTrace": "mini_trace",
    "Trace": "trace",
}
__all__ = ["CipherLanguage", "KeyValueArithmetic", "Lesson", "MiniTrace", "Trace"]


def __getattr__(name: str) -> object:
    """Import a benchmark at its first use (PEP 562), so that listing the names imports none."""
    if name not in _HOMES:
        raise AttributeError(f"module 'benchmarks' has no attribute {name!r}. Choose from {', '.join(__all__)}.")
    return getattr(import_module(f"benchmarks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
