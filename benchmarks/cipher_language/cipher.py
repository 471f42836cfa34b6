"""The cipher language: dialects that permute the nouns, and the rows written in them."""

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
"""Each is one token of the shipped tokenizer, and `mini` can retrieve it from a prompt."""
VERBS = {"wants": "wanted", "sees": "seen", "buys": "bought"}
MOST_FACTS = 2
WORD_ALONE = 0.5
"""Share of the glosses that are a single word."""


@dataclass(frozen=True)
class Cipher:
    """Eight dialects, each a derangement of the nouns: "cup" may mean tea in red and park in blue.

    Args:
        seed: Seed of the permutations and of the split of the dialects.
    """

    seed: int = 0

    @cached_property
    def written(self) -> dict[str, dict[str, str]]:
        """For each dialect, in random order: the written word of each English noun."""
        rng = seeded_random("cipher", self.seed)
        return {dialect: _derangement(rng) for dialect in rng.sample(DIALECTS, len(DIALECTS))}

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Dialects of the training, validation and test rows; they are disjoint."""
        order = tuple(self.written)
        return {"train": order[:3], "validation": order[3:5], "test": order[5:]}

    def facts(self, rng: random.Random, part: str) -> Row:
        """Return a question with facts in a random dialect of a part; the answer is English."""
        dialect = rng.choice(self.parts[part])
        text, answer = ask(rng, self.written[dialect])
        return f"In {dialect}. {text}", answer

    def word(self, rng: random.Random, part: str) -> Row:
        """Return a single word in a random dialect of a part, and its meaning."""
        dialect, noun = rng.choice(self.parts[part]), rng.choice(NOUNS)
        return f"In {dialect}. {self.written[dialect][noun]}", noun

    def gloss(self, rng: random.Random) -> Row:
        """Return a text in any dialect that ends with a noun, and the noun's meaning.

        Glosses teach the whole language and no task. The noun comes last because a composition reads a word's meaning
        at the word's own position, so m_A has to represent it there.
        """
        part = rng.choice([part for part, dialects in self.parts.items() for _ in dialects])
        if rng.random() < WORD_ALONE:
            return self.word(rng, part)
        dialect, verb = rng.choice(self.parts[part]), rng.choice(list(VERBS))
        nouns = [rng.choice(NOUNS) for _ in range(rng.randint(1, MOST_FACTS + 1))]
        text = " ".join(f"{rng.choice(NAMES)} {verb} the {self.written[dialect][noun]}." for noun in nouns)
        return f"In {dialect}. {text[:-1]}", nouns[-1]


def ask(rng: random.Random, written: dict[str, str] | None = None) -> Row:
    """Return one or two facts and a question about one of them, in the form that `mini` was pretrained on.

    Args:
        rng: Random number generator.
        written: Written word of each English noun. None: plain English.
    """
    count, verb = rng.randint(1, MOST_FACTS), rng.choice(list(VERBS))
    names, nouns, asked = rng.sample(NAMES, count), rng.sample(NOUNS, count), rng.randrange(count)
    words = [written[noun] if written else noun for noun in nouns]
    facts = " ".join(f"{name} {verb} the {word}." for name, word in zip(names, words, strict=True))
    return f"{facts} What is {VERBS[verb]} by {names[asked]}? Answer:", nouns[asked]


def _derangement(rng: random.Random) -> dict[str, str]:
    """Return a random permutation of the nouns that maps none to itself."""
    words = list(NOUNS)
    while any(word == noun for word, noun in zip(words, NOUNS, strict=True)):
        rng.shuffle(words)
    return dict(zip(NOUNS, words, strict=True))
