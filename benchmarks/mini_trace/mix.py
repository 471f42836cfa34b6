"""The pretraining distribution: which skill how often, in which stage."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from benchmarks.mini_trace.broad import BROAD
from benchmarks.mini_trace.craft import CRAFTS
from benchmarks.mini_trace.skills import SKILLS, Episode, Skill

FIRST: Mapping[str, Skill] = {**SKILLS, **CRAFTS}
MIX: Mapping[str, Skill] = {**FIRST, **BROAD}
"""All skills; the second stage meets each of them."""

FIRST_WEIGHTS = {"basic_facts": 3.0, "facts": 4.0, "who_wants": 2.0, "option_letter": 2.0, "kind": 2.0}
WEIGHTS = {"facts": 3.0, "sum_of_facts": 3.0, "subtract": 2.0, "told_sum": 2.0, "chinese_feeling": 2.0, "kind": 2.0}
"""What is hardest to learn gets the most rows; every other skill has weight 1."""

PHASES = (
    (0.06, ("repeat",)),
    (0.22, ("repeat", "basic_facts", "who_wants", "option_letter")),
    (1.0, tuple(FIRST)),
)
"""Up to which share of the first stage's steps which skills are met. Repeating a sequence is learnt alone in 300
steps, and facts in a few forms in 400 more; with twenty skills at once neither comes in 5000."""


def first_episode(rng: random.Random, progress: float = 1.0) -> Episode:
    """One episode of the first stage, after this share of its steps."""
    names = next(names for end, names in PHASES if progress <= end)
    return _drawn(rng, names, FIRST_WEIGHTS)


def episode(rng: random.Random) -> Episode:
    """One episode of the whole mix, a skill as often as its weight says."""
    return _drawn(rng, tuple(MIX), WEIGHTS)


def text_of(turns: Episode) -> str:
    """An episode as one text."""
    return "".join(f"{prompt} {answer}" for prompt, answer in turns)


def _drawn(rng: random.Random, names: Sequence[str], weights: Mapping[str, float]) -> Episode:
    skill: Skill = rng.choices([MIX[name] for name in names], [weights.get(name, 1.0) for name in names])[0]
    return skill(rng)
