"""Bad input: exit status 2, a message that names the thing, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from small import study, write_tasks

from workbench.cli import app, guarded

Refuse = Callable[..., list[str]]


@pytest.fixture
def refuse(
    model_folder: Path,
    task_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refuse:
    """Runs the small study with something wrong; the lines that a user reads."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, **changes: Any) -> list[str]:
        raw = study(model_folder, task_folder, tmp_path / "runs", **changes)
        OmegaConf.save(OmegaConf.create(raw), tmp_path / "small.yaml")
        status = guarded(lambda: app(["run", "small.yaml", *overrides], standalone_mode=False))
        told = capsys.readouterr()
        assert status == 2, told.out + told.err
        assert "Traceback" not in told.err
        assert all(line.startswith(("error: ", "- ")) for line in told.err.splitlines()), told.err
        assert not (tmp_path / "runs").exists()
        return [line.removeprefix("error: ") for line in told.err.splitlines()]

    return run


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.batchsize=8", "data.batchsize: data has no key 'batchsize'. Did you mean 'batch_size'?"),
        ("seed=1", "seed: a study has no key 'seed'. Did you mean 'seeds'?"),
        ("strategies.seqft.class_path=strategies.SeqFt", "'strategies' has no class 'SeqFt'. Did you mean 'SeqFT'?"),
        ("strategies.seqft.class_path=strategy.SeqFT", "there is no module 'strategy'"),
        ("benchmark.class_path=benchmarks.trace.Trase", "has no class 'Trase'. Did you mean 'Trace'?"),
        ("benchmark.init_args.paht=x", "benchmark.init_args.paht: Trace has no argument 'paht'. Did you mean 'path'?"),
        ("trainer.max_epoch=1", "trainer.max_epoch: Trainer has no argument 'max_epoch'. Did you mean 'max_epochs'?"),
        ("optimizer.init_args.lrr=1", "optimizer.init_args.lrr: AdamW has no argument 'lrr'. Did you mean 'lr'?"),
        ("benchmark.init_args.tasks=[alpa]", "Did you mean 'alpha'?"),
        ("per_task.alpa.max_epochs=2", "per_task: Trace has no task 'alpa'. Did you mean 'alpha'?"),
        ("orders=[defalt]", "orders: Trace has no order 'defalt'. Did you mean 'default'?"),
    ],
)
def test_an_unknown_name_and_what_was_meant(refuse: Refuse, override: str, expected: str) -> None:
    (line,) = refuse(override)
    assert expected in line


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.batch_size=many", "data.batch_size"),
        ("trainer.max_epochs=many", "trainer.max_epochs"),
        ("optimizer.init_args.lr=fast", "optimizer.init_args.lr"),
        ("seeds=[a]", "seeds"),
        ("strategies.seqft=[]", "strategies.seqft"),
        ("per_task.alpha.max_epochs=many", "per_task.alpha.max_epochs"),
    ],
)
def test_a_text_where_a_number_belongs(refuse: Refuse, override: str, key: str) -> None:
    lines = refuse(override)
    assert lines[0].startswith(f"{key}: ")
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.batch_size=0", "data.batch_size: 0 is out of range; it has to be at least 1."),
        ("data.max_length=0", "data.max_length: 0 is out of range"),
        ("seeds=[-1]", "seeds: -1 is out of range"),
        ("trainer.max_epochs=0", "trainer.max_epochs: 0 is out of range. It has to be at least 1"),
        ("trainer.max_epochs=-1", "trainer.max_epochs: -1 is out of range. It has to be at least 1"),
        ("per_task.alpha.max_epochs=0", "per_task.alpha.trainer.max_epochs: 0 is out of range"),
        ("trainer.max_steps=0", "trainer.max_steps: 0 is out of range"),
        ("per_task.alpha.trainer.devices=2", "trainer.devices: 1 and 2 in one study. Give all strategies and tasks"),
        ("trainer.precision=17", "trainer.precision: expected"),
        ("trainer.accelerator=foo", "trainer: You selected an invalid accelerator name"),
        ("trainer.gradient_clip_algorithm=foo", "trainer: `gradient_clip_algorithm` foo is invalid"),
        ("optimizer.init_args.lr=-1", "optimizer: torch.optim.AdamW: Invalid learning rate: -1"),
        ("per_task.beta.optimizer.init_args.lr=-1", "optimizer: torch.optim.AdamW: Invalid learning rate: -1"),
        ("data.max_length=3", "data: alpha: an answer may have 3 tokens, which leaves none for the prompt out of 3."),
    ],
)
def test_a_number_out_of_range(refuse: Refuse, override: str, expected: str) -> None:
    assert refuse(override)[0].startswith(expected)


def test_a_scheduler_that_refuses_its_arguments(refuse: Refuse) -> None:
    component = {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"start_factor": 2.0}}
    assert refuse(scheduler=component)[0].startswith("scheduler: torch.optim.lr_scheduler.LinearLR: Starting")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("LoRA", {"rank": 0}, "strategies.it: rank=0 is out of range; it has to be at least 1."),
        ("LoRA", {"targets": ["q"]}, "strategies.it: targets: the model has no 'q'. There are"),
        (
            "BlockExpansion",
            {"groups": 3},
            "strategies.it: groups=3 does not divide the model's 2 layers. Choose one of",
        ),
    ],
)
def test_a_strategy_that_does_not_fit(refuse: Refuse, name: str, arguments: dict[str, Any], expected: str) -> None:
    component = {"class_path": f"strategies.{name}", "init_args": arguments}
    assert refuse(strategies={"it": component})[0].startswith(expected)


def copied(model: Path, to: Path) -> Path:
    shutil.copytree(model, to)
    return to


def test_a_model_folder_that_is_not_there_or_not_whole(refuse: Refuse, model_folder: Path, tmp_path: Path) -> None:
    assert "absent: there is no such folder" in refuse("backbone.path=absent")[0]
    (tmp_path / "empty").mkdir()
    assert "empty: there is no config.json" in refuse("backbone.path=empty")[0]
    broken = copied(model_folder, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": ')
    assert "config.json: not readable as JSON" in refuse("backbone.path=broken")[0]
    cut = copied(model_folder, tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert "truncated or damaged. Copy it again." in refuse("backbone.path=cut")[0]
    endless = copied(model_folder, tmp_path / "endless") / "tokenizer_config.json"
    endless.write_text(json.dumps(json.loads(endless.read_text()) | {"eos_token": None}))
    assert "the tokenizer has no end token (eos_token)" in refuse("backbone.path=endless")[0]


@pytest.mark.parametrize(
    ("split", "content", "expected"),
    [
        ("train", "", "alpha/train.json is empty."),
        ("train", '[{"prompt": "a", "ans', "alpha/train.json is cut short or is no JSON"),
        ("train", '{"prompt": "a", "answer": "b"}', "alpha/train.json holds an object, not a list of rows."),
        ("train", '[{"answer": "b"}]', 'alpha/train.json, row 1: "prompt" is missing.'),
        ("test", '[{"prompt": "a", "answer": "b"}, {"prompt": "a"}]', 'alpha/test.json, row 2: "answer" is missing.'),
        ("test", "[]", "alpha/test.json has no rows, so nothing could be measured."),
    ],
)
def test_data_that_are_not_as_they_should_be(
    refuse: Refuse, tmp_path: Path, split: str, content: str, expected: str
) -> None:
    folder = write_tasks(tmp_path / "tasks")
    (folder / "alpha" / f"{split}.json").write_text(content)
    (line,) = refuse(f"benchmark.init_args.path={folder}")
    assert line.startswith(f"benchmark: {expected}")


def test_data_that_a_benchmark_makes_only_when_a_task_is_asked_for(refuse: Refuse) -> None:
    few = {"test_rows": 400, "expressions": {"keys": 20, "operands": [2]}}
    made = {"class_path": "benchmarks.key_value_arithmetic.KeyValueArithmetic", "init_args": few}
    (line,) = refuse(benchmark=made)
    assert line.startswith("benchmark: test: Only 128 different prompts were found where 400 are asked for.")


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", "..", "''", ".hidden"])
def test_a_name_that_leads_out_of_the_folder(refuse: Refuse, name: str) -> None:
    assert "is no plain folder name" in refuse(f"name={name}")[0]
    component = {"class_path": "strategies.SeqFT"}
    assert "is no plain folder name" in refuse(strategies={name.strip("'"): component})[0]


def test_a_folder_for_results_below_a_file(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (line,) = refuse("output=file/runs")
    assert line == f"output: {tmp_path}/file is a file; results need a folder."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_for_results_that_cannot_be_written_to(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    (line,) = refuse("output=locked/runs")
    assert line == f"output: {tmp_path}/locked cannot be written to."


def test_all_that_is_wrong_is_told_at_once(refuse: Refuse) -> None:
    wrong = ("data.batch_size=many", "trainer.max_epochs=0", "optimizer.init_args.lrr=1", "backbone.path=absent")
    lines = refuse(
        *wrong, "sedes=[1]", "strategies.seqft.class_path=strategies.Seq", "benchmark.init_args.path=nowhere"
    )
    for key in (
        "data.batch_size",
        "trainer.max_epochs",
        "optimizer.init_args.lrr",
        "backbone.path",
        "sedes",
        "benchmark",
    ):
        assert sum(line.startswith(key) for line in lines) == 1, (key, lines)
    assert sum("has no class 'Seq'" in line for line in lines) == 1
    assert len(lines) == 7


def test_an_override_that_is_none(refuse: Refuse) -> None:
    (line,) = refuse("epochs")
    assert line == "'epochs' is no override. Write key=value, such as trainer.max_epochs=1."
