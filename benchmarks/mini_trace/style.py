"""Wording of the domains: conflict of their labels, and their similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Conflict = Literal["none", "half", "full"]
Similarity = Literal["low", "high"]

TOPIC_LETTERS = {"for": "A", "against": "B", "neither": "C"}
POLICY_LETTERS: Mapping[Conflict, Mapping[str, str]] = {
    "none": TOPIC_LETTERS,
    "half": {"for": "B", "against": "A", "neither": "C"},
    "full": {"for": "B", "against": "C", "neither": "A"},
}
"""Letter of each stance in the two stance domains; "for" means for the topic, or for a high rate."""


@dataclass(frozen=True)
class Style:
    """Wording of the domains.

    Args:
        label_conflict: "none": the letters have the same meaning in both stance domains; "half": two of the three are
            swapped, as between C-STANCE and FOMC; "full": none keeps its meaning.
        similarity: "low": every domain except code_line ends its prompts with a cue of its own, and topic_stance is
            Chinese; "high": all except code_line end with "Answer:", as in pretraining, one-word instructions are
            omitted, and topic_stance is English with the verbs of policy_stance. The subjects still differ.

    Raises:
        ValueError: An argument has another value.
    """

    label_conflict: Conflict = "half"
    similarity: Similarity = "low"

    def __post_init__(self) -> None:
        for name, known in (("label_conflict", Conflict), ("similarity", Similarity)):
            if getattr(self, name) not in get_args(known):
                choices = ", ".join(map(repr, get_args(known)))
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {choices}.")

    @property
    def alike(self) -> bool:
        """Whether the similarity is high."""
        return self.similarity == "high"

    def cue(self, own: str) -> str:
        """Return the last words of a prompt; `own` are the domain's own, used if the similarity is low."""
        return "Answer:" if self.alike else own

    @property
    def policy_letters(self) -> Mapping[str, str]:
        """Letter of each stance in policy_stance."""
        return POLICY_LETTERS[self.label_conflict]


def legend(letters: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Return a legend of the letters, in alphabetical order.

    Args:
        letters: Letter of each meaning.
        names: Word of each meaning in the domain.

    >>> legend({"for": "B", "against": "A"}, {"for": "hard", "against": "soft"})
    'A soft, B hard'
    """
    meanings = sorted(letters, key=letters.__getitem__)
    return ", ".join(f"{letters[meaning]} {names[meaning]}" for meaning in meanings)
