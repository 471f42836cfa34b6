"""A strategy or a scorer that raises ends its run and no other one, wherever runs are made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import same, study, weights, write_tasks
from omegaconf import OmegaConf

from workbench.backbone import Backbone
from workbench.cli import app, guarded
from workbench.config import parse
from workbench.errors import describe_error, raised_by_reader
from workbench.study import Study
from workbench.study.run import FAILURE

FRAGILE = '''
"""A method that raises in the sixteenth batch of a run, as long as a file lies there."""
from pathlib import Path

import torch

from workbench.strategy import ContinualStrategy


class Fragile(ContinualStrategy):
    def __init__(self, folder: str, how: str = "key") -> None:
        super().__init__()
        self.file, self.how, self.batches = Path(folder) / "trap", how, 0

    def penalties(self, backbone, batch, output):
        self.batches += 1
        if self.batches >= 16 and self.file.exists():
            torch.set_grad_enabled(False)
            if self.how == "file":
                open(self.file / "nowhere")
            raise {"key": KeyError, "assert": AssertionError, "run": RuntimeError}[self.how]("fisher")
        return {}
'''
WORKERS = {"class_path": "workbench.executors.Workers"}


@pytest.fixture
def raw(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A study of a method that raises and one that does not, ten steps a task; a plan takes fewer."""
    (tmp_path / "fragile.py").write_text(FRAGILE, encoding="utf-8")
    (tmp_path / "trap").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("fragile", None)
    tasks = write_tasks(tmp_path / "tasks", rows=40)
    return study(model_folder, tasks, tmp_path / "runs", strategies=strategies(tmp_path))


def strategies(folder: Path, how: str = "key") -> dict[str, Any]:
    arguments = {"folder": str(folder), "how": how}
    fragile = {"class_path": "fragile.Fragile", "init_args": arguments}
    return {"fragile": fragile, "seqft": {"class_path": "strategies.SeqFT"}}


@pytest.mark.parametrize("how", ["key", "assert", "run", "file"])
def test_what_a_hook_raises_ends_its_run_alone_and_the_same_command_goes_on(
    raw: dict[str, Any], how: str, tmp_path: Path
) -> None:
    raw["strategies"] = strategies(tmp_path, how)
    small = Study(parse(raw))
    rows = small.run()
    assert [row["strategy"] for row in rows] == ["seqft"]
    (failure,) = small.failures
    kinds = {"key": "KeyError: 'fisher'", "assert": "AssertionError: fisher", "run": "RuntimeError: fisher"}
    assert failure.startswith(f"fragile, order default, seed 0 failed: {kinds.get(how, 'NotADirectoryError: ')}")
    wanted = 20 if how == "file" else 21
    assert f"{tmp_path}/fragile.py, line {wanted}, in penalties)" in failure
    told = small.runs[0].folder / FAILURE
    assert "Traceback" in told.read_text(encoding="utf-8")
    assert torch.is_grad_enabled()
    (tmp_path / "trap").unlink()
    again = Study(parse(raw))
    assert [row["strategy"] for row in again.run()] == ["fragile", "seqft"]
    assert again.failures == []
    assert not told.exists()


def test_in_workers_the_same_runs_are_made_and_the_same_is_told(raw: dict[str, Any], tmp_path: Path) -> None:
    here, beside = Study(parse(raw)), Study(parse({**raw, "name": "beside", "executor": WORKERS}))
    rows = here.run()
    assert [row["OP"] for row in beside.run()] == [row["OP"] for row in rows]
    assert beside.failures == here.failures
    assert len(here.failures) == 1


def test_the_program_leaves_with_1_and_names_the_line(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    OmegaConf.save(OmegaConf.create(raw), tmp_path / "small.yaml")
    assert guarded(lambda: app(["run", "small.yaml"], standalone_mode=True)) == 1
    told = capsys.readouterr().err
    assert (
        "error: fragile, order default, seed 0 failed: KeyError: 'fisher' (fragile.py, line 21, in penalties)." in told
    )
    assert "Traceback" not in told


SCORER = '''
"""A benchmark whose scorer fails at a wrong answer in the last test row, which no rehearsal sees."""
from dataclasses import replace

from workbench.scorers import RowMean
from workbench.testing import tiny_tasks


class Picky(RowMean):
    def score(self, prompt, prediction, answer):
        return 1 / (prompt != "Task 0: s11 d\\nAnswer:" or prediction == answer)


class Bench:
    probes, general, orders = (), None, {"default": ["task_0"], "again": ["task_0"]}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return replace(tiny_tasks(1)[0], scorers={"picky": Picky()})
'''


@pytest.mark.parametrize("executor", ["InProcess", "Workers"])
def test_a_scorer_that_raises_fails_each_run_and_nothing_else(
    raw: dict[str, Any], executor: str, tmp_path: Path
) -> None:
    (tmp_path / f"picky_{executor}.py").write_text(SCORER, encoding="utf-8")
    raw |= {"benchmark": {"class_path": f"picky_{executor}.Bench"}, "orders": ["default"], "seeds": [0, 1]}
    raw |= {"strategies": {"seqft": {"class_path": "strategies.SeqFT"}}}
    small = Study(parse({**raw, "executor": {"class_path": f"workbench.executors.{executor}"}}))
    assert small.run() == []
    assert len(small.failures) == 2
    for seed, failure in enumerate(small.failures):
        assert failure.startswith(f"seqft, order default, seed {seed} failed: ZeroDivisionError: ")
        assert f"picky_{executor}.py, line 11, in score)" in failure


def raised(act: Callable[[], object]) -> Exception:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_innermost_line_of_the_readers_own_is_named() -> None:
    def reads() -> None:
        torch.zeros(2) @ torch.zeros(3)

    told = describe_error(raised(reads))
    assert told.startswith("RuntimeError: ")
    assert told.endswith(f"test_run.py, line {reads.__code__.co_firstlineno + 1}, in reads)")
    assert raised_by_reader(raised(lambda: open("/nowhere")))  # noqa: SIM115
    assert not raised_by_reader(raised(lambda: Backbone.load("/nowhere")))


def test_weights_are_those_of_a_study_without_the_run_that_failed(raw: dict[str, Any], tmp_path: Path) -> None:
    both = Study(parse(raw))
    both.run()
    ended = weights(both.assembly.backbone)
    alone = Study(parse({**raw, "name": "alone", "strategies": {"seqft": {"class_path": "strategies.SeqFT"}}}))
    alone.run()
    assert same(ended, weights(alone.assembly.backbone))
