"""Settings that override each other: study, strategy, the study's task, the strategy's task."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.config import Component, TaskSettings, parse
from workbench.config.schema import Changes, combined, for_seed
from workbench.errors import ConfigError

LORA: dict[str, Any] = {
    "class_path": "m.LoRA",
    "optimizer": {"init_args": {"lr": 2e-3}},
    "per_task": {"FOMC": {"max_epochs": 7}},
}
RAW: dict[str, Any] = {
    "name": "again",
    "benchmark": {"class_path": "m.Bench"},
    "strategies": {
        "seqft": {"class_path": "m.Plain"},
        "lora": LORA,
        "mix": [{"class_path": "m.LoRA", "trainer": {"max_steps": 5}}, {"class_path": "m.Plain"}],
    },
    "optimizer": {"class_path": "m.Adam", "init_args": {"lr": 1e-3, "decay": 0.1}},
    "per_task": {
        "FOMC": {"max_epochs": 3, "optimizer": {"init_args": {"lr": 1e-5}}},
        "MeetingBank": {"optimizer": {"class_path": "m.SGD"}, "scheduler": {"class_path": "m.Cosine"}},
    },
    "trainer": {"max_epochs": 1, "accelerator": "auto"},
}


def test_the_strategy_s_task_overrides_the_study_s_task_the_strategy_and_the_study() -> None:
    study = parse(RAW)

    def adam(lr: float) -> Component:
        return Component("m.Adam", {"lr": lr, "decay": 0.1})

    def trainer(epochs: int) -> dict[str, Any]:
        return {"max_epochs": epochs, "accelerator": "auto"}

    assert study.settings("seqft") == TaskSettings(adam(1e-3), None, trainer(1))
    assert study.settings("lora") == TaskSettings(adam(2e-3), None, trainer(1))
    assert study.settings("seqft", "FOMC") == TaskSettings(adam(1e-5), None, trainer(3))
    assert study.settings("lora", "FOMC") == TaskSettings(adam(1e-5), None, trainer(7))
    assert study.settings("lora", "Py150") == study.settings("lora")
    assert study.settings("mix", "FOMC").trainer == {**trainer(3), "max_steps": 5}
    meeting = study.settings("lora", "MeetingBank")
    assert (meeting.optimizer, meeting.scheduler) == (Component("m.SGD"), Component("m.Cosine"))


def test_a_strategy_may_do_without_the_study_s_scheduler() -> None:
    strategies = {"lora": {**LORA, "scheduler": None}, "seqft": {"class_path": "m.Plain"}}
    study = parse({**RAW, "strategies": strategies, "scheduler": {"class_path": "m.Cosine"}})
    assert study.settings("seqft").scheduler == Component("m.Cosine")
    assert study.settings("lora").scheduler is None


def test_a_scheduler_cannot_be_changed_where_there_is_none() -> None:
    changed = {"scheduler": {"init_args": {"steps": 3}}}
    for raw, where in [
        ({"strategies": {"lora": {**LORA, **changed}}, "per_task": {}}, "strategies.lora"),
        ({"per_task": {"FOMC": changed}}, "per_task.FOMC"),
    ]:
        with pytest.raises(ConfigError) as caught:
            parse({**RAW, **raw})
        assert caught.value.problems == [f"{where}.scheduler.class_path: missing. Name a class."]


def test_combining_changes_modifies_neither() -> None:
    weak: Changes = {"optimizer": {"class_path": "m.Adam", "init_args": {"lr": 1}}, "trainer": {"a": 1}}
    strong: Changes = {"optimizer": {"init_args": {"decay": 2}}, "trainer": {"b": 2}}
    assert combined(weak, strong) == {
        "optimizer": {"class_path": "m.Adam", "init_args": {"lr": 1, "decay": 2}},
        "trainer": {"a": 1, "b": 2},
    }
    assert combined(weak, {}) == weak
    assert combined({}, strong) == strong
    assert weak["optimizer"]["init_args"] == {"lr": 1}
    assert weak["trainer"] == {"a": 1}


def test_the_tasks_with_settings_of_their_own() -> None:
    assert parse(RAW).tasks("seqft") == ["FOMC", "MeetingBank"]


def test_the_seed_is_put_into_texts_at_any_depth() -> None:
    strategies = {"lora": {"class_path": "m.LoRA", "init_args": {"seed": "{seed}", "paths": ["a/{seed}", 3]}}}
    study = parse({**RAW, "strategies": strategies, "backbone": {"path": "base-{seed}"}, "output": "{seed}"})
    seeded = for_seed(study, 7)
    assert seeded.strategies["lora"].components[0].init_args == {"seed": 7, "paths": ["a/7", 3]}
    assert (seeded.backbone.path, for_seed(parse({**RAW, "backbone": {"path": "{seed}"}}), 7).backbone.path) == (
        "base-7",
        "7",
    )
    assert (seeded.output, study.backbone.path) == ("{seed}", "base-{seed}")
