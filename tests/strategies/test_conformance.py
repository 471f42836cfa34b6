"""Every shipped strategy passes the conformance suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import strategies
from strategies import (
    CALM,
    EMA,
    BlockExpansion,
    Joint,
    LoRA,
    Merge,
    PullBack,
    Replay,
    Rewind,
    SeqFT,
)
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing import VARIANTS, check_strategy, conformance, strategy_warnings, tiny_backbone

ARGUMENTS: dict[str, dict[str, Any]] = {  # for a model of 4 layers
    "BlockExpansion": {"groups": 2},
    "ContinuedPretraining": {"steps": 2},
    "CALM": {"augmenting": "micro", "connections": 2},
    "DepthUpScaling": {"dropped": 1},
    "EMA": {"beta": 0.5},
    "Rewind": {"alpha": 0.5},
}

NO_EFFECT_HERE = {"PullBack"}
"""Of the tiny tasks each helps the other, so that nothing is pulled back."""


class GoesBack(PullBack):
    """Finds that no past task is kept."""

    def _keeps(self, backbone: Any, past: Any) -> bool:
        return False


SENTENCES = [check.__doc__ for check in conformance.STRATEGY_CHECKS]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", strategies.__all__)
def test_a_shipped_strategy_conforms_on_every_tiny_model(
    name: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`repeats` takes as long as all other checks, so it is done on one model only."""

    def make() -> ContinualStrategy:
        strategy: ContinualStrategy = getattr(strategies, name)(**ARGUMENTS.get(name, {}))
        return strategy

    checks = [check for check in conformance.STRATEGY_CHECKS if check is not conformance.repeats or variant == "gqa"]
    monkeypatch.setattr(conformance, "STRATEGY_CHECKS", checks)
    assert check_strategy(make, partial(tiny_backbone, **VARIANTS[variant])) == [check.__doc__ for check in checks]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LoRA(policy="merge"),
        lambda: LoRA(policy="stack"),
        lambda: BlockExpansion(groups=2, each_task=True),
        lambda: CALM("micro", 2, policy="each_task"),
        lambda: CALM("micro", 2, encoder=True),
        lambda: EMA(beta=0.5, scope="sequence"),
        lambda: Merge("ties", scope="independent"),
        lambda: Merge("average", carry="scored"),
        lambda: Rewind(0.5, towards="task", carry="scored"),
        lambda: GoesBack(search="bisection"),
    ],
)
def test_what_changes_with_the_tasks_or_reads_only_the_prompt_conforms(make: Callable[[], ContinualStrategy]) -> None:
    assert check_strategy(make) == SENTENCES


@pytest.mark.parametrize(
    "members",
    [
        lambda: [SeqFT(), BlockExpansion(groups=2)],
        lambda: [LoRA(), Replay()],
        lambda: [BlockExpansion(groups=2), Joint()],
        lambda: [LoRA(policy="merge"), Merge()],
        lambda: [LoRA(policy="merge"), EMA(beta=0.5)],
        lambda: [LoRA(policy="stack"), Rewind(0.5, towards="task")],
        lambda: [LoRA(), GoesBack()],
        lambda: [BlockExpansion(groups=2), Merge("dare", drop=0.5)],
    ],
)
def test_a_composition_conforms(members: Callable[[], list[ContinualStrategy]]) -> None:
    assert check_strategy(lambda: Composition(members())) == SENTENCES


@pytest.mark.parametrize("name", sorted({*strategies.__all__} - NO_EFFECT_HERE))
def test_a_shipped_strategy_is_not_warned_of(name: str) -> None:
    assert strategy_warnings(lambda: getattr(strategies, name)(**ARGUMENTS.get(name, {}))) == []
