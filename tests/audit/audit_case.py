"""A claim about a method that a number decides, and a fault of public code that the number has to reveal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workbench.strategy import ContinualStrategy

Make = Callable[[], ContinualStrategy]


@dataclass(frozen=True)
class Case:
    """What is measured is a distance from a value worked out by hand or by an independent program.

    Args:
        method: Name of the strategy's class.
        claim: What has to hold, in one sentence.
        fault: What public code does instead, and whose code, in words.
        distance: Measures a strategy that a function makes.
        limit: Largest distance of a right one.
        right: Makes the strategy.
        wrong: Makes the strategy with the fault.
    """

    method: str
    claim: str
    fault: str
    distance: Callable[[Make], float]
    limit: float
    right: Make
    wrong: Make
