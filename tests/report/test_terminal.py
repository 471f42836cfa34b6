"""Tables in the terminal: the trials of a sweep, and which one is chosen."""

from __future__ import annotations

import math
from typing import Any

import pytest

from workbench.report.terminal import trial_rows


def rows(method: str, scores: dict[str, list[float]], bound: str | None = None) -> list[dict[str, Any]]:
    return [
        {"trial_of": method, "strategy": name, "bound": bound, "OP": value, "learning_accuracy": 1 - value}
        for name, values in scores.items()
        for value in values
    ]


def test_the_best_trial_of_each_method_is_chosen() -> None:
    known = rows("a", {"a 1": [0.2, 0.4], "a 2": [0.5, 0.3], "a 3": [0.9]})
    known += rows("b", {"b 1": [0.2], "b 2": [0.6]}, bound="learning_accuracy")
    known += [*rows("c", {"c 1": [math.nan]}), {"trial_of": None, "strategy": "d", "OP": 1.0}]
    found = trial_rows(known)
    assert [(row["strategy"], row["trials"], row["runs"]) for row in found] == [
        ("a 1", 3, 2), ("a 2", 3, 2), ("a 3", 3, 1), ("b 1", 2, 1), ("b 2", 2, 1), ("c 1", 1, 1),
    ]  # fmt: skip
    assert [row["strategy"] for row in found if row["chosen"]] == ["a 2", "b 1"]
    assert [row["mean"] for row in found[:2]] == [pytest.approx(0.3), pytest.approx(0.4)]
    assert {row["measure"] for row in found} == {"OP", "learning_accuracy"}
