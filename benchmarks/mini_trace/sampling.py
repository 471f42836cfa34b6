"""Random numbers that are the same in every process, and rows drawn from them without repeats."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Row = tuple[str, str]


def listing(words: Sequence[str]) -> str:
    """Words as a person lists them.

    >>> listing(["tea", "cake", "milk"])
    'tea, cake, milk'
    """
    return ", ".join(words)


def distinct_rows(make: Callable[[random.Random], Row], rng: random.Random, count: int) -> list[Row]:
    """`count` rows with different prompts, so that no split can hold another's question.

    Raises:
        ValueError: The maker has fewer than `count` prompts to give.
    """
    rows: dict[str, str] = {}
    for _ in range(20 * count):
        prompt, answer = make(rng)
        rows.setdefault(prompt, answer)
        if len(rows) == count:
            return list(rows.items())
    raise ValueError(f"Only {len(rows)} different prompts were found where {count} are asked for: take fewer rows.")
