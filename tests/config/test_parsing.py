"""Each thing that a study's mapping may have wrong, by the exact message."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.config import Component, parse
from workbench.errors import ConfigError

RAW: dict[str, Any] = {
    "name": "again",
    "benchmark": {"class_path": "m.Bench"},
    "strategies": {"lora": {"class_path": "m.LoRA"}},
}


def problems(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse({**RAW, **changes})
    return caught.value.problems


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("batch_size", "many", "expected int, got 'many' (str)."),
        ("batch_size", True, "expected int, got True (bool)."),
        ("batch_size", None, "expected int, got None (NoneType)."),
        ("batch_size", 0, "0 is out of range; it has to be at least 1."),
        ("eval_batch_size", 0, "0 is out of range; it has to be at least 1."),
        ("max_length", 0, "0 is out of range; it has to be at least 1."),
        ("max_answer_length", 2.5, "expected int or None, got 2.5 (float)."),
        ("bucket", 0, "0 is out of range; it has to be at least 1."),
        ("truncation", "right", "expected 'left' or 'middle', got 'right' (str)."),
        (
            "template",
            "alpacca",
            "expected 'none' or 'alpaca' or 'chat', got 'alpacca' (str). Did you mean 'alpaca'?",
        ),
        ("bach_size", 3, "data has no key 'bach_size'. Did you mean 'batch_size'?"),
    ],
)
def test_data(key: str, value: object, problem: str) -> None:
    assert problems(data={key: value}) == [f"data.{key}: {problem}"]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("name", 3, "expected str, got 3 (int)."),
        ("data", 3, "expected a mapping of keys, got 3 (int)."),
        ("trainer", "x", "expected a mapping of keys, got 'x' (str)."),
        ("existing", "no", "expected 'resume' or 'refuse' or 'replace', got 'no' (str)."),
        ("seeds", [], "empty; name one or more."),
        ("seeds", [1, 1], "1 is listed more than once."),
        ("seeds", [2**32], "4294967296 is out of range; a seed has to be at least 0 and below 2**32."),
        ("seeds", [True], "expected list[int], got [True] (list)."),
        ("seeds", 0, "expected list[int], got 0 (int)."),
        ("orders", [], "empty; name one or more."),
        ("orders", ["1", 1], "'1' is listed more than once."),
        ("benchmark", None, "expected a mapping with 'class_path', got None (NoneType)."),
        ("optimizer", None, "expected a mapping with 'class_path', got None (NoneType)."),
        ("strategies", None, "empty; a study needs one strategy or more."),
        ("strategies", {"lora": None}, "empty; a study needs one strategy or more."),
        ("strategies", ["m.LoRA"], "expected a mapping of keys, got ['m.LoRA'] (list)."),
    ],
)  # fmt: skip
def test_one_key(key: str, value: object, problem: str) -> None:
    assert problems(**{key: value}) == [f"{key}: {problem}"]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("m.LoRA", ": expected a mapping with 'class_path', got 'm.LoRA' (str)."),
        ([], ": an empty list; name one component or more."),
        ([{"class_path": "m.A"}, "m.B"], ".1: expected a mapping with 'class_path', got 'm.B' (str)."),
        ([{"init_args": {}}], ".0.class_path: missing. Name a class."),
        ({"class_path": 3}, ".class_path: expected str, got 3 (int)."),
        ({"class_path": "m.A", "max_epochs": 1},
         ".max_epochs: strategies.x has no key 'max_epochs'. "
         "Its keys are class_path, init_args, optimizer, scheduler, trainer, per_task, sweep, trial_of."),
        ({"class_path": "m.A", "optimizer": {"lr": 1}},
         ".optimizer.lr: a component has 'class_path' and 'init_args' only. Arguments go into 'init_args'."),
        ({"class_path": "m.A", "per_task": {"FOMC": {"max_epochs": "many"}}},
         ".per_task.FOMC.max_epochs: expected int or None, got 'many' (str)."),
        ({"class_path": "m.A", "per_task": {"FOMC": {"lr": 1}}},
         ".per_task.FOMC.lr: strategies.x.per_task.FOMC has no key 'lr'. "
         "Its keys are max_epochs, optimizer, scheduler, trainer."),
    ],
)  # fmt: skip
def test_a_strategy(entry: object, problem: str) -> None:
    assert problems(strategies={"x": entry}) == [f"strategies.x{problem}"]


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "/tmp", "a\\b", "~", "a\n", "a\0", "a ", "C:", "a."])
def test_a_name_that_would_leave_the_output_folder(name: str) -> None:
    end = f"{name!r} is not a plain folder name. Begin with a letter or a digit, and leave out slashes."
    assert problems(name=name) == [f"name: {end}"]
    assert problems(orders=[name]) == [f"orders: {end}"]
    assert problems(strategies={name: {"class_path": "m.A"}}) == [f"strategies.{name}: {end}"]


@pytest.mark.parametrize("name", ["again", "8", "LoRA r=8, v1.2", "lora+replay", "é_b-c"])
def test_a_plain_name(name: str) -> None:
    assert parse({**RAW, "name": name}).name == name


def test_what_is_read_kindly() -> None:
    study = parse({**RAW, "orders": [1, "two"], "trainer": None, "data": None, "per_task": None})
    assert (study.orders, study.trainer, study.data.batch_size, study.per_task) == (["1", "two"], {}, 32, {})
    assert parse({**RAW, "optimizer": {"init_args": {"lr": 1}}}).optimizer == Component("torch.optim.AdamW", {"lr": 1})


def test_a_composition_lays_its_members_changes_in_turn() -> None:
    first = {"class_path": "m.A", "trainer": {"a": 1, "b": 1}, "per_task": {"FOMC": {"max_epochs": 1}}}
    then = {"class_path": "m.B", "trainer": {"b": 2}, "per_task": {"FOMC": {"max_epochs": 2}}}
    mix = parse({**RAW, "strategies": {"mix": [first, then]}}).strategies["mix"]
    assert mix.components == [Component("m.A"), Component("m.B")]
    assert mix.changes == {"trainer": {"a": 1, "b": 2}}
    assert mix.per_task == {"FOMC": {"trainer": {"max_epochs": 2}}}


def test_all_that_is_missing_or_unknown_comes_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"nme": "a"})
    assert caught.value.problems == [
        "nme: a study has no key 'nme'. Did you mean 'name'?",
        "name: missing; every study needs it.",
        "benchmark: missing; every study needs it.",
        "strategies: missing; every study needs it.",
    ]
