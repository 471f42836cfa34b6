"""Rows drawn at random without repeated prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Row = tuple[str, str]


def listing(words: Sequence[str]) -> str:
    """Return words as a comma-separated list.

    >>> listing(["tea", "cake", "milk"])
    'tea, cake, milk'
    """
    return ", ".join(words)


def distinct_rows(make: Callable[[random.Random], Row], rng: random.Random, count: int) -> list[Row]:
    """Return `count` rows with different prompts, so that no two splits share a prompt.

    Raises:
        ValueError: Too few different prompts were found.
    """
    rows: dict[str, str] = {}
    for _ in range(20 * count):
        prompt, answer = make(rng)
        rows.setdefault(prompt, answer)
        if len(rows) == count:
            return list(rows.items())
    raise ValueError(f"Only {len(rows)} different prompts were found where {count} are asked for: take fewer rows.")
