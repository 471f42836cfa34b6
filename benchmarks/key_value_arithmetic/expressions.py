"""Keys, their numbers, and the rows SUBS, NUM and MATH."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from workbench.benchmark import seeded_random

Row = tuple[str, str]
Make = Callable[[random.Random], Row]
Word = TypeVar("Word", int, str)

KEY_LENGTHS = (2, 6)
HELD_OUT = {"validation": 0.1, "test": 0.4}
"""Shares of the keys that never occur in training rows of the composition."""

MOST_NUMBERS = 10_000
TRIES = 50
"""Draws for each requested row before an error is raised."""


def evaluate(numbers: Sequence[int], operators: Sequence[str]) -> int:
    """Return the value of an expression; products before sums and differences.

    >>> evaluate([2, 3, 4], ["-", "*"])
    -10
    """
    terms = [numbers[0]]
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "*":
            terms[-1] *= number
        else:
            terms.append(number if operator == "+" else -number)
    return sum(terms)


def spelt(words: Iterable[object], operators: Sequence[str]) -> str:
    """Return an expression as text.

    >>> spelt([12, 7, 3], "+-")
    '12+7-3'
    """
    return "".join(f"{word}{operator}" for word, operator in zip(words, [*operators, ""], strict=True))


@dataclass(frozen=True)
class Expressions:
    """Random keys with their numbers, and rows of expressions over them.

    The paper has 25 thousand keys, as many numbers, 3 to 6 operands and three operators. The defaults are chosen so
    that models of a few hundred thousand parameters learn the rows in minutes.

    Args:
        seed: Seed of the keys and of their numbers.
        keys: Number of keys, 20 to 100000; each has 2 to 6 letters.
        values: A key's number is between 1 and `values`.
        operands: Possible numbers of operands of an expression, each 2 or more.
        operators: Operators of the expressions, among "+", "-" and "*".

    Raises:
        ValueError: A number is out of range, or an operator is unknown.
    """

    seed: int = 0
    keys: int = 1000
    values: int = 20
    operands: Sequence[int] = (2,)
    operators: str = "+-"

    def __post_init__(self) -> None:
        object.__setattr__(self, "operands", tuple(self.operands))
        if not 20 <= self.keys <= 100_000:
            raise ValueError(f"keys={self.keys} is out of range. Choose 20 to 100000.")
        if self.values < 2:
            raise ValueError(f"values={self.values} is out of range. Choose 2 or more.")
        if not self.operands or min(self.operands) < 2:
            raise ValueError(f"operands={list(self.operands)}: give one count or more, each of 2 or more.")
        if not self.operators or set(self.operators) - set("+-*"):
            raise ValueError(f"operators={self.operators!r}: choose one or more of '+', '-' and '*'.")
        if self.largest > MOST_NUMBERS:
            raise ValueError(
                f"values={self.values} and operands={list(self.operands)} with {self.operators!r} reach "
                f"{self.largest}, and each number is a token. Choose fewer, so that none is above {MOST_NUMBERS}."
            )

    @property
    def largest(self) -> int:
        """Upper bound on the absolute value of any number in an answer."""
        most = max(self.operands)
        return int(self.values**most if "*" in self.operators else self.values * most)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each key; the keys are in random order."""
        rng = seeded_random("key_value", self.seed, "keys")
        numbers: dict[str, int] = {}
        while len(numbers) < self.keys:
            key = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(*KEY_LENGTHS)))
            numbers.setdefault(key, rng.randint(1, self.values))
        return numbers

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All keys."""
        return tuple(self.numbers)

    @cached_property
    def held_out(self) -> dict[str, tuple[str, ...]]:
        """Keys of the "validation" and "test" rows; they do not depend on the share of seen keys."""
        first, second = (round(share * self.keys) for share in HELD_OUT.values())
        return {"validation": self.words[:first], "test": self.words[first : first + second]}

    def seen(self, share: float) -> tuple[str, ...]:
        """Return the keys of the training rows. The keys of a smaller share are a subset of those of a larger one.

        Args:
            share: Share of all keys.

        Raises:
            ValueError: The share gives no key, or overlaps with the held-out keys.
        """
        most = 1 - sum(HELD_OUT.values())
        count = round(share * self.keys)
        if not 0 < share <= most or count < 1:
            raise ValueError(f"share={share} of {self.keys} keys is out of range: choose more than 0, at most {most}.")
        return self.words[self.keys - count :]

    def different(self, words: int) -> int:
        """Return the number of different expressions over a number of keys."""
        return sum(words**count * len(self.operators) ** (count - 1) for count in self.operands)

    def subs(self, rng: random.Random, keys: Sequence[str], operands: Sequence[int] = ()) -> Row:
        """Return an expression of keys and the same expression of numbers: "ab+cde:" and "12+7".

        The colon distinguishes it from MATH, whose answer is the result.
        """
        words, operators = self._draw(rng, keys, operands)
        return spelt(words, operators) + ":", spelt([self.numbers[word] for word in words], operators)

    def num(self, rng: random.Random, operands: Sequence[int] = ()) -> Row:
        """Return an expression of numbers and its result: "12+7=" and "19"."""
        numbers, operators = self._draw(rng, range(1, self.values + 1), operands)
        return spelt(numbers, operators) + "=", str(evaluate(numbers, operators))

    def math(self, rng: random.Random, keys: Sequence[str]) -> Row:
        """Return an expression of keys and its result: "ab+cde=" and "19"."""
        words, operators = self._draw(rng, keys, ())
        return spelt(words, operators) + "=", str(evaluate([self.numbers[word] for word in words], operators))

    def one_key(self, rng: random.Random) -> Row:
        """Return a single key and its number: "ab" and "12"."""
        key = rng.choice(self.words)
        return key, str(self.numbers[key])

    def _draw(self, rng: random.Random, words: Sequence[Word], operands: Sequence[int]) -> tuple[list[Word], list[str]]:
        count = rng.choice(operands or self.operands)
        return [rng.choice(words) for _ in range(count)], [rng.choice(self.operators) for _ in range(count - 1)]


def distinct(make: Make, rng: random.Random, count: int) -> list[Row]:
    """Return `count` rows with different prompts.

    Raises:
        ValueError: Too few different prompts were found.
    """
    rows: dict[str, str] = {}
    for _ in range(TRIES * count):
        prompt, answer = make(rng)
        rows.setdefault(prompt, answer)
        if len(rows) == count:
            break
    if len(rows) < count:
        raise ValueError(
            f"Only {len(rows)} different prompts were found where {count} are asked for. "
            "Take fewer rows, or more keys, values, operands or operators."
        )
    return list(rows.items())
