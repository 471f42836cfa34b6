"""From a mapping to a study: each error by its exact message, compositions, and sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.studies import study

from workbench.config import Component, load, parse
from workbench.errors import ConfigError
from workbench.runtime.files import read_csv
from workbench.study import Study

RAW: dict[str, Any] = {
    "name": "again",
    "benchmark": {"class_path": "m.Bench"},
    "strategies": {"lora": {"class_path": "m.LoRA"}},
}
RATES = {"optimizer.init_args.lr": [0.0001, 0.01]}
SEQFT = {"class_path": "m.SeqFT"}
LORA = {"class_path": "m.LoRA", "init_args": {"rank": 2}}
VALIDATION = {"score_on": "validation"}


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
        ("num_workers", -1, "-1 is out of range; it has to be at least 0."),
        ("frozen_states_gb", float("nan"), "nan is out of range; it has to be at least 0."),
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
def test_a_key_of_data(key: str, value: object, problem: str) -> None:
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
        ("first_tasks", 0, "0 is out of range; it has to be at least 1."),
        ("save_every_n_steps", 1.5, "expected int or None, got 1.5 (float)."),
        ("save_every_seconds", -1, "-1 is out of range; it has to be at least 0."),
        ("save_every_seconds", float("inf"), "inf is out of range; it has to be at least 0."),
        ("benchmark", None, "expected a mapping with 'class_path', got None (NoneType)."),
        ("optimizer", None, "expected a mapping with 'class_path', got None (NoneType)."),
        ("strategies", None, "empty; a study needs one strategy or more."),
        ("strategies", {"lora": None}, "empty; a study needs one strategy or more."),
        ("strategies", ["m.LoRA"], "expected a mapping of keys, got ['m.LoRA'] (list)."),
    ],
)  # fmt: skip
def test_a_key_of_the_study(key: str, value: object, problem: str) -> None:
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


def test_numbers_and_null_where_names_and_mappings_are_expected() -> None:
    study = parse({**RAW, "orders": [1, "two"], "trainer": None, "data": None, "per_task": None})
    assert (study.orders, study.trainer, study.data.batch_size, study.per_task) == (["1", "two"], {}, 32, {})
    assert parse({**RAW, "optimizer": {"init_args": {"lr": 1}}}).optimizer == Component("torch.optim.AdamW", {"lr": 1})


def test_the_settings_of_a_composition_s_members_are_combined_in_order() -> None:
    first = {"class_path": "m.A", "trainer": {"a": 1, "b": 1}, "per_task": {"FOMC": {"max_epochs": 1}}}
    then = {"class_path": "m.B", "trainer": {"b": 2}, "per_task": {"FOMC": {"max_epochs": 2}}}
    mix = parse({**RAW, "strategies": {"mix": [first, then]}}).strategies["mix"]
    assert mix.components == [Component("m.A"), Component("m.B")]
    assert mix.changes == {"trainer": {"a": 1, "b": 2}}
    assert mix.per_task == {"FOMC": {"trainer": {"max_epochs": 2}}}


def test_missing_and_unknown_keys_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"nme": "a"})
    assert caught.value.problems == [
        "nme: a study has no key 'nme'. Did you mean 'name'?",
        "name: missing; every study needs it.",
        "benchmark: missing; every study needs it.",
        "strategies: missing; every study needs it.",
    ]


def test_a_sweep_is_expanded_to_its_trials() -> None:
    mixed = [
        {**LORA, "sweep": {"init_args.rank": [1, 2]}},
        {"class_path": "m.Replay", "sweep": {"init_args.share": [0.5]}},
    ]
    strategies = {"seqft": {**SEQFT, "sweep": RATES}, "mix": mixed}
    config = parse({**RAW, "strategies": strategies, "optimizer": {"init_args": {"lr": 0.02}}, "data": VALIDATION})
    assert list(config.strategies) == [
        "seqft lr=0.0001",
        "seqft lr=0.01",
        "mix rank=1 share=0.5",
        "mix rank=2 share=0.5",
    ]
    rates = [config.settings(name).optimizer.init_args["lr"] for name in config.strategies]
    assert rates == [0.0001, 0.01, 0.02, 0.02]  # the last two have the study's own
    ranks = [config.strategies[name].components[0].init_args["rank"] for name in list(config.strategies)[2:]]
    assert ranks == [1, 2]
    assert [strategy.trial_of for strategy in config.strategies.values()] == ["seqft", "seqft", "mix", "mix"]


def test_settings_of_one_name_are_labelled_by_their_whole_key() -> None:
    sweep = {"optimizer.init_args.lr": [0.1], "init_args.lr": [2]}
    config = parse({**RAW, "strategies": {"x": {**SEQFT, "sweep": sweep}}, "data": VALIDATION})
    assert list(config.strategies) == ["x optimizer.init_args.lr=0.1 init_args.lr=2"]


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        ([1], "sweep: expected a mapping of dotted keys to lists, got [1]."),
        ({"optimizer.init_args.lr": 0.1},
         "sweep.optimizer.init_args.lr: expected a list of different values, got 0.1."),
        ({"init_args.rank": [1, 1]}, "sweep.init_args.rank: expected a list of different values, got [1, 1]."),
        ({3: "x"}, "sweep.3: expected a list of different values, got 'x'."),
    ],
)  # fmt: skip
def test_a_sweep_of_a_wrong_shape(sweep: Any, problem: str) -> None:
    remedy = "Write {optimizer.init_args.lr: [1.0e-4, 1.0e-3]}."
    assert problems(strategies={"x": {**LORA, "sweep": sweep}}) == [f"strategies.x.{problem} {remedy}"]


def test_a_misspelt_key_in_a_sweep() -> None:
    found = problems(strategies={"x": {**SEQFT, "sweep": {"optimzer.lr": [1]}}})
    assert found[0] == "strategies.x lr=1.optimzer: strategies.x lr=1 has no key 'optimzer'. Did you mean 'optimizer'?"
    found = problems(strategies={"x": {**SEQFT, "sweep": {3: [1]}}})
    assert found[0].startswith("strategies.x 3=1.3: strategies.x 3=1 has no key '3'. Its keys are class_path,")


def test_a_sweep_beside_a_member_of_a_wrong_shape() -> None:
    assert problems(strategies={"x": [{**SEQFT, "sweep": RATES}, "m.LoRA"]}) == [
        "strategies.x.1: expected a mapping with 'class_path', got 'm.LoRA' (str)."
    ]


def test_a_choice_among_trials_that_is_not_fair() -> None:
    swept = {**SEQFT, "sweep": RATES}
    (unequal,) = problems(strategies={"seqft": swept, "lora": LORA}, data=VALIDATION)
    assert unequal.startswith("strategies: the methods have different numbers of trials (seqft 2, lora 1).")
    (leaking,) = problems(strategies={"seqft": swept})
    assert leaking.startswith("data.score_on: test; a sweep chooses by the scores")


def test_a_sweep_from_its_config_to_its_choice(model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    strategies = {"seqft": {"class_path": "strategies.SeqFT", "sweep": RATES}}
    changes = {"strategies": strategies, "first_tasks": 1, "data": {"batch_size": 4, "max_length": 64, **VALIDATION}}
    small = Study(parse(study(model_folder, task_folder, tmp_path / "runs", **changes)))
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
