"""The cipher language: dialects that give the nouns other meanings, and rows of questions and words in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from workbench.benchmark import seeded_random

Row = tuple[str, str]
Make = Callable[[random.Random], Row]

DIALECTS = ("red", "blue", "green", "black", "white", "brown", "pink", "grey")
NAMES = (
    "Tom", "Ann", "Bob", "Sue", "Max", "Eva", "Ben", "Liz", "Sam", "Kim", "Joe", "Amy",
    "Dan", "Meg", "Leo", "Ida", "Roy", "Zoe", "Pat", "Ray", "Jim", "Eve", "Ned", "Lou",
)  # fmt: skip
NOUNS = (
    "tea", "cake", "milk", "bread", "soup", "rice", "salt", "jam", "corn", "meat", "beer", "egg",
    "cat", "dog", "cow", "pig", "hen", "fox", "bee", "ant", "owl", "duck", "goat", "bear",
    "pen", "book", "cup", "lamp", "ball", "drum", "ring", "rope", "box", "bag", "key", "map",
    "coat", "hat", "shoe", "sock", "belt", "cap",
    "park", "shop", "farm", "lake", "hill", "port", "bank", "mill", "road", "town", "school", "market",
)  # fmt: skip
"""Each a token of the shipped tokenizer, and a word that the mini backbone finds in a text."""
VERBS = {"wants": "wanted", "sees": "seen", "buys": "bought"}
MOST_FACTS = 2
WORD_ALONE = 0.5


@dataclass(frozen=True)
class Cipher:
    """Eight dialects, each a permutation of the nouns that keeps none: "cup" may mean tea in red and park in blue.

    Args:
        seed: Which permutations, and which dialects are for what.
    """

    seed: int = 0

    @cached_property
    def written(self) -> dict[str, dict[str, str]]:
        """Dialect to English noun to the word that it is written as; the dialects in an order that is random."""
        rng = seeded_random("cipher", self.seed)
        return {dialect: _derangement(rng) for dialect in rng.sample(DIALECTS, len(DIALECTS))}

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The dialects that a composition learns from, and those of validation and test, that it never meets."""
        order = tuple(self.written)
        return {"train": order[:3], "validation": order[3:5], "test": order[5:]}

    def facts(self, rng: random.Random, part: str) -> Row:
        """A question about who wants what, in a dialect of this part; the answer is English."""
        dialect = rng.choice(self.parts[part])
        text, answer = ask(rng, self.written[dialect])
        return f"In {dialect}. {text}", answer

    def word(self, rng: random.Random, part: str) -> Row:
        """A word of a dialect of this part, alone, and what it means."""
        dialect, noun = rng.choice(self.parts[part]), rng.choice(NOUNS)
        return f"In {dialect}. {self.written[dialect][noun]}", noun

    def gloss(self, rng: random.Random) -> Row:
        """The last word of a text in any dialect, and what it means: all of the language, and no task.

        A composition reads a word's meaning at the word's own position, so that is where m_A learns to have it.
        """
        part = rng.choice([part for part, dialects in self.parts.items() for _ in dialects])
        if rng.random() < WORD_ALONE:
            return self.word(rng, part)
        dialect, verb = rng.choice(self.parts[part]), rng.choice(list(VERBS))
        nouns = [rng.choice(NOUNS) for _ in range(rng.randint(1, MOST_FACTS + 1))]
        told = " ".join(f"{rng.choice(NAMES)} {verb} the {self.written[dialect][noun]}." for noun in nouns)
        return f"In {dialect}. {told[:-1]}", nouns[-1]


def ask(rng: random.Random, written: dict[str, str] | None = None) -> Row:
    """One or two facts and a question about one of them, as the mini backbone knows it.

    Args:
        rng: What is drawn from.
        written: English noun to the word that stands for it in the text; None: itself.
    """
    count, verb = rng.randint(1, MOST_FACTS), rng.choice(list(VERBS))
    names, nouns, asked = rng.sample(NAMES, count), rng.sample(NOUNS, count), rng.randrange(count)
    words = [written[noun] if written else noun for noun in nouns]
    told = " ".join(f"{name} {verb} the {word}." for name, word in zip(names, words, strict=True))
    return f"{told} What is {VERBS[verb]} by {names[asked]}? Answer:", nouns[asked]


def _derangement(rng: random.Random) -> dict[str, str]:
    words = list(NOUNS)
    while any(word == noun for word, noun in zip(words, NOUNS, strict=True)):
        rng.shuffle(words)
    return dict(zip(NOUNS, words, strict=True))
