"""Checks of a config's classes and arguments before anything is built, by their exact messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.configs import write_study

from workbench.config import load
from workbench.config.components import import_class
from workbench.config.validation import check, check_limits, check_parts, check_surroundings, check_trainer


@pytest.fixture
def file(tmp_path: Path, forget_imports: None) -> Path:
    return write_study(tmp_path)


def test_a_study_without_problems(file: Path) -> None:
    config = load(file)
    assert check(config) == []
    assert check_trainer(config, import_class("methods.Trainer")) == []


def test_each_layer_of_settings_is_checked_and_each_problem_is_reported_once(file: Path) -> None:
    keys = ["optimizer.init_args.dcay=1", "strategies.lora.init_args.rnk=8", "trainer.max_epochs=many"]
    more = ["strategies.lora.optimizer.init_args.lr=fast", "per_task.FOMC.trainer.max_step=1"]
    config = load(file, keys + more)
    assert check(config) == [
        "optimizer.init_args.dcay: Adam has no argument 'dcay'. Did you mean 'decay'?",
        "strategies.lora.init_args.rnk: LoRA has no argument 'rnk'. Did you mean 'rank'?",
        "strategies.lora.optimizer.init_args.lr: expected float, got 'fast' (str).",
    ]
    assert check_trainer(config, import_class("methods.Trainer")) == [
        "trainer.max_epochs: expected int or None, got 'many' (str).",
        "per_task.FOMC.trainer.max_step: Trainer has no argument 'max_step'. Did you mean 'max_steps'?",
    ]


def test_trainer_arguments_are_checked_with_the_seed_put_in(file: Path) -> None:
    config = load(file, ["seeds=[3]", 'strategies.lora.trainer.max_steps="{seed}"'])
    assert check_trainer(config, import_class("methods.Trainer")) == []


def test_the_members_of_a_composition_are_numbered(file: Path) -> None:
    config = load(file, ["strategies.mix.1.init_args.a=1", "benchmark.class_path=methods.Bench"])
    assert check(config) == [
        "benchmark.init_args.path: missing; Bench needs it.",
        "strategies.mix.1.init_args.a: Plain has no argument 'a'.",
    ]


def test_the_classes_of_a_config_are_checked_although_its_keys_are_wrong(file: Path) -> None:
    load(file)  # makes `methods` importable
    raw = {
        "seed": 3,
        "benchmark": {"class_path": "methods.Bench", "init_args": {"paht": "here"}, "bad_key": 1},
        "strategies": {"lora": {"class_path": "methods.LoRa"}, "mix": [{"class_path": "methods.Plain"}, 3]},
        "optimizer": {"init_args": {"lrr": 1}},
        "scheduler": "methods.Cosine",
        "trainer": {"max_epochs": 0},
        "backbone": {"path": "nowhere"},
    }
    assert check_parts(raw) == [
        "benchmark.init_args.paht: Bench has no argument 'paht'. Did you mean 'path'?",
        "benchmark.init_args.path: missing; Bench needs it.",
        "optimizer.init_args.lrr: AdamW has no argument 'lrr'. Did you mean 'lr'?",
        "strategies.lora.class_path: 'methods' has no class 'LoRa'. Did you mean 'LoRA'?",
        "backbone.path: nowhere: there is no such folder. Give a Hugging Face model folder, a GGUF file, a hub id, "
        "'mini', 'micro' or 'smollm2'.",
    ]
    assert check_trainer(raw, import_class("methods.Trainer")) == [
        "trainer.max_epochs: 0 is out of range. It has to be at least 1; or give max_steps or max_time, "
        "with max_epochs=-1.",
    ]
    assert check_trainer({**raw, "trainer": "quick"}, import_class("methods.Trainer")) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"max_epochs": 3, "max_steps": -1, "accumulate_grad_batches": 1, "gradient_clip_val": 0}, ""),
        ({"max_epochs": -1, "max_steps": 5}, ""),
        ({"max_epochs": -1, "max_time": "00:00:00:05"}, ""),
        ({"limit_train_batches": 0.5, "overfit_batches": 0, "val_check_interval": None, "max_time": {"hours": 1}}, ""),
        ({"max_epochs": 0, "max_steps": 5}, "max_epochs: 0 is out of range."),
        ({"max_epochs": -1}, "max_epochs: -1 is out of range."),
        ({"max_steps": 0}, "max_steps: 0 is out of range; it has to be at least 1."),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches: 0 is out of range; it has to be at least 1."),
        ({"gradient_clip_val": float("nan")}, "gradient_clip_val: nan is out of range; it has to be at least 0."),
        ({"limit_train_batches": 0.0}, "limit_train_batches: 0 would leave nothing to train on."),
        ({"max_time": "00:00:00:00"}, "max_time: 00:00:00:00 would train nothing."),
        ({"max_time": {"minutes": 0}}, "max_time: {'minutes': 0} would train nothing."),
        ({"overfit_batches": 1}, "overfit_batches: 1 would not give each epoch the same batches"),
        ({"val_check_interval": 5}, "val_check_interval: 5 asks for validation"),
        ({"check_val_every_n_epoch": 2}, "check_val_every_n_epoch: 2 asks for validation"),
    ],
)
def test_arguments_that_only_the_trainer_accepts(arguments: dict[str, Any], problem: str) -> None:
    problems = check_limits(arguments, "trainer")
    assert len(problems) == bool(problem)
    assert all(found.startswith(f"trainer.{problem}") for found in problems)


def test_the_output_folder_has_to_be_writable(file: Path, tmp_path: Path) -> None:
    assert check_surroundings(load(file, [f"output={tmp_path}/new/runs"])) == []
    assert check_surroundings(load(file, [f"output={file}/runs", "backbone.path=gone"])) == [
        "backbone.path: gone: there is no such folder. Give a Hugging Face model folder, a GGUF file, a hub id, "
        "'mini', 'micro' or 'smollm2'.",
        f"output: {file} is a file; results need a folder. Choose another.",
    ]
    prepared = ["prepare={class_path: methods.Plain}", "backbone.path=gone", f"output={tmp_path}"]
    assert check_surroundings(load(file, prepared)) == []  # `prepare` may write that model
