"""The pretraining distribution: frequency of each skill in each stage."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from benchmarks.mini_trace.broad import BROAD
from benchmarks.mini_trace.craft import CRAFTS
from benchmarks.mini_trace.skills import SKILLS, Episode, Skill

FIRST: Mapping[str, Skill] = {**SKILLS, **CRAFTS}
MIX: Mapping[str, Skill] = {**FIRST, **BROAD}
"""All skills; the second stage contains each of them."""

FIRST_WEIGHTS = {"basic_facts": 3.0, "facts": 4.0, "who_wants": 2.0, "option_letter": 2.0, "kind": 2.0}
WEIGHTS = {"facts": 3.0, "sum_of_facts": 3.0, "subtract": 2.0, "told_sum": 2.0, "chinese_feeling": 2.0, "kind": 2.0}
"""The hardest skills have the largest weights; every other skill has weight 1."""

PHASES = (
    (0.06, ("repeat",)),
    (0.22, ("repeat", "basic_facts", "who_wants", "option_letter")),
    (1.0, tuple(FIRST)),
)
"""Curriculum of the first stage: share of its steps at which a phase ends, and the skills of the phase.

Repeating a sequence is learnt in 300 steps if it is the only skill, and facts of a few relations in 400 more; with
twenty skills at once neither is learnt in 5000 steps.
"""


def first_episode(rng: random.Random, progress: float = 1.0) -> Episode:
    """Return an episode of the first stage; `progress` is the share of its steps that are finished."""
    names = next(names for end, names in PHASES if progress <= end)
    return _drawn(rng, names, FIRST_WEIGHTS)


def episode(rng: random.Random) -> Episode:
    """Return an episode of the whole mix; a skill is drawn in proportion to its weight."""
    return _drawn(rng, tuple(MIX), WEIGHTS)


def text_of(turns: Episode) -> str:
    """Return an episode as one text."""
    return "".join(f"{prompt} {answer}" for prompt, answer in turns)


def _drawn(rng: random.Random, names: Sequence[str], weights: Mapping[str, float]) -> Episode:
    skill: Skill = rng.choices([MIX[name] for name in names], [weights.get(name, 1.0) for name in names])[0]
    return skill(rng)
