"""The three domains of the lesson: verdicts on reviews, invented facts about islands, and small sums."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torchmetrics import Metric

from workbench.scorers import ExactMatch, FirstLabel, ValidLabel

Row = tuple[str, str]

VERDICTS = ("A", "B", "C")
PLACES = ("restaurant", "hotel", "café", "museum", "campsite", "cinema", "bakery", "bookshop")
PRAISE = (
    "the staff were kind", "everything was clean", "the prices were fair", "we did not have to wait",
    "the view was wonderful", "our children loved it", "it was quiet and warm", "we were welcomed with a smile",
    "nothing was too much trouble", "the place was easy to find", "we would come back at once",
    "it was better than we had hoped",
)  # fmt: skip
BLAME = (
    "the staff were rude", "everything was dirty", "the prices were far too high", "we had to wait for an hour",
    "there was noise all day", "our children were bored", "it was cold and damp", "nobody said a word to us",
    "half of it was broken", "the place was hard to find", "we will never come back",
    "it was worse than we had feared",
)  # fmt: skip

ISLANDS = {
    "Tarvo": "lanterns", "Velmora": "figs", "Ossin": "goats", "Pelk": "bells", "Marandi": "salt", "Quill": "ferries",
    "Brenna": "peaches", "Ildor": "carpets", "Suvane": "owls", "Kesper": "clocks", "Norrick": "pepper",
    "Lathe": "violins",
}  # fmt: skip
"""Islands that do not exist, and what each is known for: facts that no pretraining can hold."""
ASKED = (
    "What is the island of {} known for?", "For what is {} famous?", "What do travellers bring home from {}?",
    "Tell me what {} is known for.", "Which thing made the island of {} famous?", "What should one buy on {}?",
    "If you think of the island of {}, what comes to mind?", "What does everyone associate with {}?",
    "What do people praise about the island of {}?", "Name the thing for which {} is known.",
    "What is {} best known for?", "What is the island of {} proud of?", "Why do people visit {}?",
    "What is the speciality of {}?", "What is found everywhere on the island of {}?", "What does {} sell to the world?",
)  # fmt: skip

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
THINGS = ("pears", "coins", "books", "shells", "stamps", "eggs", "marbles", "candles")
MOST = 9


@dataclass(frozen=True)
class Domain:
    """One domain.

    Args:
        draw: Draws so many rows of prompt and answer, with different prompts.
        scorers: Builds the metrics, the primary one first.
        max_new_tokens: Longest answer, in tokens.
        options: The labels; empty if the answers are not labels.
    """

    draw: Callable[[random.Random, int], list[Row]]
    scorers: Callable[[], dict[str, Metric]]
    max_new_tokens: int
    options: tuple[str, ...] = ()


def reviews(rng: random.Random, count: int) -> list[Row]:
    """Draw reviews of two remarks and their verdicts: A for praise alone, C for blame alone, B for one of each."""
    return _distinct(_review, rng, count)


def _review(rng: random.Random) -> Row:
    verdict = rng.choice(VERDICTS)
    kinds = {"A": (PRAISE, PRAISE), "B": (PRAISE, BLAME), "C": (BLAME, BLAME)}[verdict]
    first, second = rng.sample(kinds[0], 2) if kinds[0] is kinds[1] else rng.sample([*map(rng.choice, kinds)], 2)
    joined = "but" if verdict == "B" else "and"
    prompt = (
        "Is this review A) good, B) mixed or C) bad?\n"
        f"Review of a {rng.choice(PLACES)}: {first[0].upper()}{first[1:]}, {joined} {second}.\nVerdict:"
    )
    return prompt, verdict


def islands(rng: random.Random, count: int) -> list[Row]:
    """Draw questions about the islands, and what each is known for; among twelve in turn is each island once."""
    asked = {name: rng.sample(ASKED, len(ASKED)) for name in ISLANDS}
    turns = [rng.sample(list(ISLANDS), len(ISLANDS)) for _ in ASKED]
    rows = [
        (f"{asked[name][turn].format(name)}\nAnswer:", f" {ISLANDS[name]}")
        for turn, names in enumerate(turns)
        for name in names
    ]
    return rows[:count]


def sums(rng: random.Random, count: int) -> list[Row]:
    """Draw small sums told as stories, with their results in digits."""
    return _distinct(_sum, rng, count)


def _sum(rng: random.Random) -> Row:
    had, got = rng.randint(1, MOST), rng.randint(1, MOST)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    story = f"{name} has {had} {thing} and finds {got} more. How many {thing} does {name} have now?"
    return f"{story}\nNumber:", str(had + got)


def _distinct(make: Callable[[random.Random], Row], rng: random.Random, count: int) -> list[Row]:
    rows: dict[str, str] = {}
    while len(rows) < count:
        prompt, answer = make(rng)
        rows[prompt] = answer
    return list(rows.items())


def _labels() -> dict[str, Metric]:
    pattern = "[ABC]"
    label = FirstLabel(rf"(?<![A-Za-z]){pattern}(?![A-Za-z])")
    return {"accuracy": ExactMatch(), "first_label": label, "valid": ValidLabel(pattern)}


def _words() -> dict[str, Metric]:
    return {"accuracy": ExactMatch(), "first_word": FirstLabel("[a-z]+")}


def _numbers() -> dict[str, Metric]:
    return {"accuracy": ExactMatch(), "first_number": FirstLabel("[0-9]+")}


MOST_ROWS = len(ISLANDS) * len(ASKED)
"""Rows of a domain with different prompts, in all splits together."""
DOMAINS: Mapping[str, Domain] = {
    "reviews": Domain(reviews, _labels, 3, VERDICTS),
    "islands": Domain(islands, _words, 6),
    "sums": Domain(sums, _numbers, 4),
}
