"""The knobs of the domains' wording: how far labels clash, and how alike the domains look."""

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
"""What the letters mean in the two stance domains; for: of a topic, or of a high rate."""


@dataclass(frozen=True)
class Style:
    """How the domains are worded.

    Args:
        label_conflict: "none": the letters mean the same in both stance domains; "half": two of the three change
            places, as C-STANCE's and FOMC's do; "full": none keeps its meaning.
        similarity: "low": every domain but code_line has closing words of its own, and topic_stance is Chinese;
            "high": all but code_line end in the words that the backbone's own questions end in, instructions of one
            word are gone, and topic_stance is English and told with policy_stance's verbs. What is talked about
            still differs.

    Raises:
        ValueError: A value is none of these.
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
        """Whether the domains look alike."""
        return self.similarity == "high"

    def cue(self, own: str) -> str:
        """What a prompt ends with, where a domain's own words would be `own`."""
        return "Answer:" if self.alike else own

    @property
    def policy_letters(self) -> Mapping[str, str]:
        """Letters of policy_stance, by what they mean."""
        return POLICY_LETTERS[self.label_conflict]


def legend(letters: Mapping[str, str], names: Mapping[str, str]) -> str:
    """What each letter means, in the letters' order.

    Args:
        letters: Meaning to letter.
        names: Meaning to the word that the domain uses for it.

    >>> legend({"for": "B", "against": "A"}, {"for": "hard", "against": "soft"})
    'A soft, B hard'
    """
    meanings = sorted(letters, key=letters.__getitem__)
    return ", ".join(f"{letters[meaning]} {names[meaning]}" for meaning in meanings)
