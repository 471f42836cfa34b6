"""Sweeps: the trials that a config asks for, when they are no fair choice, and which is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import study

from workbench.config import load, parse
from workbench.errors import ConfigError
from workbench.report.terminal import trial_rows
from workbench.runtime.files import read_csv
from workbench.study import Study

RATES = {"optimizer.init_args.lr": [0.0001, 0.01]}
SEQFT = {"class_path": "strategies.SeqFT"}
LORA = {"class_path": "strategies.LoRA", "init_args": {"rank": 2}}
VALIDATION = {"batch_size": 4, "max_length": 64, "score_on": "validation"}


@pytest.fixture
def raw(model_folder: Path, task_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A study on validation rows with some keys changed."""

    def build(**changes: Any) -> dict[str, Any]:
        return study(model_folder, task_folder, tmp_path / "runs", **{"data": VALIDATION, **changes})

    return build


def problems(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    return caught.value.problems


def test_a_sweep_is_so_many_trials(raw: Callable[..., dict[str, Any]]) -> None:
    mixed = [
        {**LORA, "sweep": {"init_args.rank": [1, 2]}},
        {"class_path": "strategies.Replay", "sweep": {"init_args.share": [0.5]}},
    ]
    config = parse(raw(strategies={"seqft": {**SEQFT, "sweep": RATES}, "mix": mixed}))
    assert list(config.strategies) == [
        "seqft lr=0.0001",
        "seqft lr=0.01",
        "mix rank=1 share=0.5",
        "mix rank=2 share=0.5",
    ]
    rates = [config.settings(name).optimizer.init_args["lr"] for name in config.strategies]
    assert rates == [0.0001, 0.01, 0.01, 0.01]  # the last two have the study's own
    ranks = [config.strategies[name].components[0].init_args["rank"] for name in list(config.strategies)[2:]]
    assert ranks == [1, 2]
    assert [strategy.trial_of for strategy in config.strategies.values()] == ["seqft", "seqft", "mix", "mix"]


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ([1], "sweep: expected a mapping of dotted keys to lists, got [1]."),
        ({"optimizer.init_args.lr": 0.1},
         "sweep.optimizer.init_args.lr: expected a list of different values, got 0.1."),
        ({"init_args.rank": [1, 1]}, "sweep.init_args.rank: expected a list of different values, got [1, 1]."),
    ],
)  # fmt: skip
def test_a_sweep_that_is_none(raw: Callable[..., dict[str, Any]], sweep: Any, told: str) -> None:
    remedy = "Write {optimizer.init_args.lr: [1.0e-4, 1.0e-3]}."
    assert problems(raw(strategies={"x": {**LORA, "sweep": sweep}})) == [f"strategies.x.{told} {remedy}"]


def test_a_misspelt_key_is_told(raw: Callable[..., dict[str, Any]]) -> None:
    found = problems(raw(strategies={"x": {**SEQFT, "sweep": {"optimzer.lr": [1]}}}))
    assert found[0] == "strategies.x lr=1.optimzer: strategies.x lr=1 has no key 'optimzer'. Did you mean 'optimizer'?"


def test_a_choice_that_would_not_be_fair(raw: Callable[..., dict[str, Any]]) -> None:
    swept = {**SEQFT, "sweep": RATES}
    (unequal,) = problems(raw(strategies={"seqft": swept, "lora": LORA}))
    assert unequal.startswith("strategies: the methods have different numbers of trials (seqft 2, lora 1).")
    (leaking,) = problems(raw(strategies={"seqft": swept}, data={"batch_size": 4}))
    assert leaking.startswith("data.score_on: test; a sweep chooses by the scores")


def rows(method: str, means: dict[str, list[float]], bound: str | None = None) -> list[dict[str, Any]]:
    return [
        {"trial_of": method, "strategy": name, "bound": bound, "OP": value, "learning_accuracy": 1 - value}
        for name, values in means.items()
        for value in values
    ]


def test_the_best_of_each_method_is_chosen() -> None:
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


def test_a_sweep_from_its_config_to_its_choice(raw: Callable[..., dict[str, Any]]) -> None:
    small = Study(parse(raw(strategies={"seqft": {**SEQFT, "sweep": RATES}}, first_tasks=1)))
    summary = small.run()
    written = read_csv(small.folder / "sweep.csv")
    assert [(row["method"], row["trials"], row["strategy"]) for row in written] == [
        ("seqft", "2", "seqft lr=0.0001"),
        ("seqft", "2", "seqft lr=0.01"),
    ]
    assert [float(row["mean"]) for row in written] == [row["OP"] for row in summary]
    alone = load(small.runs[1].folder / "config.yaml")
    assert alone.strategies["seqft lr=0.01"].trial_of == "seqft"
    assert alone.settings("seqft lr=0.01").optimizer.init_args["lr"] == 0.01
    protocol = small.results(small.runs[1]).environment()["protocol"]
    assert (protocol["trial_of"], protocol["order"], protocol["scored_on"]) == ("seqft", ["alpha"], "validation")
