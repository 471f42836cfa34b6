"""Deterministic kernels: used as the config says, and reset after the study."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import study
from torch import Tensor

from workbench.backbone import Backbone, Batch, Output
from workbench.benchmark import Task
from workbench.config import parse
from workbench.runtime.seeding import WORKSPACE
from workbench.strategy import ContinualStrategy
from workbench.study import Study

HEARD: set[tuple[str, bool, bool]] = set()


def in_force() -> tuple[bool, bool]:
    """Whether torch uses deterministic kernels, and whether it only warns if there is none."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


class Listener(ContinualStrategy):
    """Records the settings while it trains and while it answers."""

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        HEARD.add(("training", *in_force()))
        return super().penalties(backbone, batch, output)

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        HEARD.add(("scoring", *in_force()))
        return super().answer(backbone, task, prompts)


@pytest.fixture
def raw(model_folder: Path, task_folder: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A small study whose strategy records the settings."""
    HEARD.clear()
    strategies = {"listener": {"class_path": "test_seeding.Listener"}}
    yield study(model_folder, task_folder, tmp_path / "runs", strategies=strategies)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, (True, True)), ({"deterministic": True}, (True, False)), ({"deterministic": False}, (False, False))],
)
def test_the_configs_deterministic_setting_is_applied_and_recorded(
    said: dict[str, Any], expected: tuple[bool, bool], raw: dict[str, Any]
) -> None:
    raw["trainer"] |= said
    made = Study(parse(raw))
    made.run()
    assert {("training", *expected), ("scoring", *expected)} == HEARD
    (run,) = made.runs
    assert made.results(run).environment()["protocol"]["deterministic"] == said.get("deterministic", "warn")


def test_a_strategy_may_override_deterministic(raw: dict[str, Any]) -> None:
    raw["strategies"]["seqft"] = {"class_path": "strategies.SeqFT"}
    raw["strategies"]["listener"]["trainer"] = {"deterministic": False}
    made = Study(parse(raw))
    made.run()
    assert {("training", False, False), ("scoring", False, False)} <= HEARD
    assert {("training", True, True)}.isdisjoint(HEARD)
    recorded = [made.results(run).environment()["protocol"]["deterministic"] for run in made.runs]
    assert recorded == [False, "warn"]


@pytest.mark.parametrize("before", [(False, False), (True, True), (True, False)])
def test_kernel_settings_are_restored(
    before: tuple[bool, bool], raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    for workspace in (None, ":16:8"):
        monkeypatch.delenv(WORKSPACE, raising=False)
        if workspace:
            monkeypatch.setenv(WORKSPACE, workspace)
        raw["trainer"]["deterministic"] = not before[0]
        made = Study(parse(raw))
        assert (*in_force(), os.environ.get(WORKSPACE)) == (*before, workspace)
        made.plan()
        assert (*in_force(), os.environ.get(WORKSPACE)) == (*before, workspace)
        made.run()
        assert (*in_force(), os.environ.get(WORKSPACE)) == (*before, workspace)
