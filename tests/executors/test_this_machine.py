"""The default executor: how it divides a machine among runs, and the same bytes however many run at a time."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.frail import SEVERAL, end_of, frail

from workbench.config import parse
from workbench.display import Display, Lines
from workbench.executors import InProcess, RunSpec, ThisMachine, this_machine
from workbench.executors.base import longest_first
from workbench.executors.this_machine import LIBRARIES_BYTES, Shares, choose_shares, fitting_runs, worth_workers
from workbench.runtime.environment import describe_environment
from workbench.study import Study

GB = 1_000_000_000


class Heard(Display):
    """Keeps what it is told, and of which runs."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.planned: dict[str, float] = {}
        self.beside_each_other: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def study_begins(self, planned: Any, kept: int) -> None:
        self.planned, self.kept = dict(planned), kept

    def beside(self, title: str) -> Display:
        self.beside_each_other.append(title)
        return Lines(title, self.note)


@pytest.mark.parametrize(
    ("cores", "threads", "divided", "runs", "left", "fitting", "expected"),
    [
        # a small model, or OMP_NUM_THREADS: each run has its threads
        (8, 1, False, 20, 20, 99, (8, 1)),
        (8, 1, False, 20, 3, 99, (3, 1)),
        (8, 1, False, 20, 20, 5, (5, 1)),
        (8, 1, False, 1, 1, 99, (1, 1)),
        (2, 1, False, 20, 20, 1, (1, 1)),
        (8, 2, False, 20, 20, 99, (4, 2)),
        (8, 3, False, 20, 20, 99, (2, 3)),
        (4, 8, False, 20, 20, 99, (1, 8)),  # begun on a larger machine
        # a larger model: the runs divide the cores
        (8, 8, True, 20, 20, 99, (8, 1)),
        (8, 8, True, 4, 4, 99, (4, 2)),
        (8, 8, True, 3, 3, 99, (3, 2)),
        (8, 8, True, 1, 1, 99, (1, 8)),
        (8, 8, True, 20, 20, 2, (2, 4)),
        (8, 8, True, 20, 20, 1, (1, 8)),
        (2, 8, True, 20, 20, 99, (2, 1)),  # a container with two cores of the machine's
        # the threads do not depend on how many runs are left
        (8, 8, True, 4, 1, 99, (1, 2)),
        (8, 8, True, 20, 2, 99, (2, 1)),
    ],
)
def test_cores_memory_and_runs_decide_how_many_run_at_a_time(
    cores: int, threads: int, divided: bool, runs: int, left: int, fitting: int, expected: tuple[int, int]
) -> None:
    shares = choose_shares(cores, threads, divided=divided, runs=runs, left=left, fitting=fitting)
    assert shares == Shares(*expected, divided)


@pytest.mark.parametrize(
    ("free", "planned", "expected"),
    [
        (None, 5 * GB, 9),
        (10 * GB, 1 * GB, 4),  # 2.1 GB each
        (10 * GB, 0, 16),
        (1 * GB, 5 * GB, 1),
        (2 * LIBRARIES_BYTES, 0, 2),
    ],
)
def test_runs_fit_with_their_libraries_and_half_as_much_again(free: int | None, planned: int, expected: int) -> None:
    assert fitting_runs(free, planned, 9) == expected


@pytest.mark.parametrize(
    ("seconds", "worth"),
    [([500.0], False), ([500.0, 59.0], False), ([500.0, 60.0], True), ([20.0] * 4, True), ([20.0, math.nan], False)],
)
def test_workers_start_for_a_minute_beside_the_longest_run(seconds: list[float], worth: bool) -> None:
    assert worth_workers(seconds) is worth


def planned(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[RunSpec], float]) -> None:
    """Let each run be planned to take some seconds, on a machine of two cores with much memory."""
    monkeypatch.setattr(Study, "planned_seconds", lambda _, run: seconds(run))
    monkeypatch.setattr(this_machine, "usable_cores", lambda: 2)
    monkeypatch.setattr(this_machine, "usable_memory", lambda: 100 * GB)


def test_the_longest_run_is_first_and_unknown_ones_are_last(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Study(parse({**raw, "strategies": {**SEVERAL, "third": SEVERAL["seqft"]}}))
    planned(monkeypatch, lambda run: {"seqft": 10.0, "lora": 20.0}.get(run.strategy, math.nan) + run.seed)
    ordered = [(run.strategy, run.seed) for run in longest_first(small, small.runs)]
    assert ordered == [("lora", 1), ("lora", 0), ("seqft", 1), ("seqft", 0), ("third", 0), ("third", 1)]


@pytest.fixture
def chosen(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, int, int]]:
    """Tells where the default executor would execute the runs of a study, and with how many workers and threads."""
    found: list[tuple[str, int, int]] = []
    planned(monkeypatch, lambda _: 100.0)
    monkeypatch.setattr(Study, "score_untouched", lambda *_: None)

    def beside(study: Any, runs: Any, count: int, threads: int, display: Any) -> list[str]:
        found.append(("workers", count, threads))
        return []

    def here(self: Any, study: Any, display: Any) -> list[str]:
        found.append(("here", 1, torch.get_num_threads()))
        return []

    monkeypatch.setattr(this_machine, "execute_in_workers", beside)
    monkeypatch.setattr(InProcess, "make", here)

    def choose(**changes: Any) -> tuple[str, int, int]:
        small = Study(parse({**raw, **changes}))
        assert type(small._executor) is ThisMachine
        assert small._executor.make(small, Display()) == []
        return found[-1]

    return choose


def test_several_runs_are_executed_at_a_time(chosen: Callable[..., tuple[str, int, int]]) -> None:
    assert chosen() == ("workers", 2, 1)


def test_one_run_is_executed_here(chosen: Callable[..., tuple[str, int, int]]) -> None:
    assert chosen(seeds=[0]) == ("here", 1, 1)


def test_short_runs_are_executed_here(
    chosen: Callable[..., tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, lambda _: 50.0)
    assert chosen() == ("here", 1, 1)


def test_runs_on_a_gpu_are_executed_here(
    chosen: Callable[..., tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Study, "on_cpu", False)
    assert chosen() == ("here", 1, 1)


def test_a_run_on_several_devices_is_executed_here(
    chosen: Callable[..., tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_machine, "world", lambda: 2)  # as after the Trainer has started the other process
    assert chosen() == ("here", 1, 1)


def test_a_study_on_several_devices_is_accepted_with_the_default(raw: dict[str, Any]) -> None:
    raw["trainer"] |= {"devices": 2, "strategy": "ddp"}
    assert Study(parse(raw))._checked_trainer().world_size == 2


def test_where_memory_is_for_one_the_runs_are_executed_here(
    chosen: Callable[..., tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_machine, "usable_memory", lambda: GB)
    assert chosen() == ("here", 1, 1)


def test_a_script_without_a_guard_is_executed_here_and_says_why(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, lambda _: 100.0)
    monkeypatch.setattr(this_machine, "can_start_workers", lambda: False)
    heard = Heard()
    assert len(Study(parse({**raw, "first_tasks": 1})).run(heard)) == 2
    assert [line for line in heard.lines if line.startswith("executor: the runs are executed one after another.")]
    assert heard.beside_each_other == []


def test_runs_of_a_larger_model_divide_the_cores(
    chosen: Callable[..., tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch is, and the environment of a user who has set nothing, with a model that is not small."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(this_machine, "usable_cores", lambda: 8)
    monkeypatch.setattr(this_machine.torch, "get_num_threads", lambda: 8)
    assert chosen() == ("workers", 2, 4)
    planned(monkeypatch, lambda _: 1.0)  # the threads must not depend on a time that was measured
    monkeypatch.setattr(this_machine, "usable_cores", lambda: 8)
    assert chosen() == ("workers", 2, 4)
    monkeypatch.setattr(Study, "threads", 3)  # recorded when the study's first run was begun
    planned(monkeypatch, lambda _: 100.0)
    monkeypatch.setattr(this_machine, "usable_cores", lambda: 8)
    assert chosen() == ("workers", 2, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert chosen()[0] == "here"
    monkeypatch.setattr(this_machine, "usable_cores", lambda: 16)
    assert chosen() == ("workers", 2, 8)


def test_a_run_is_resumed_with_the_threads_it_was_begun_with(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    small = Study(parse({**raw, "seeds": [0], "first_tasks": 1}))
    assert small.threads is None
    used: list[int] = []

    def learn(*_: object) -> None:
        used.append(torch.get_num_threads())
        raise FloatingPointError("far enough")

    monkeypatch.setattr("workbench.study.run.learn_in_sequence", learn)
    hardware = describe_environment()
    hardware["hardware"]["threads"] = 3
    results = small.results(small.runs[0])
    results.write_environment(hardware)
    assert small.threads == 3
    before = torch.get_num_threads()
    small.make(small.runs[0], Display())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small.make(small.runs[0], Display())
    assert used == [3, before]
    assert torch.get_num_threads() == before


def test_eight_runs_on_two_workers_one_of_which_is_killed_give_the_bytes_of_one_process(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two orders of two tasks, two seeds, two strategies; and one strategy's process is killed as it trains."""
    raw |= {"strategies": {"lora": SEVERAL["lora"], **frail(tmp_path, deaths=1)}, "first_tasks": 2}
    raw["orders"] = {"up": ["alpha", "beta", "gamma"], "down": ["gamma", "beta", "alpha"]}
    planned(monkeypatch, lambda run: 100.0 if run.strategy == "frail" else 50.0)
    beside, heard = Study(parse({**raw, "name": "beside"})), Heard()
    beside.run(heard)
    assert beside.failures == []
    assert multiprocessing.active_children() == []
    assert list(heard.planned.values()) == [50.0] * 4 + [100.0] * 4
    assert [title.partition(",")[0] for title in heard.beside_each_other] == [
        *["zero-shot model", "frail", "frail"],
        *[title.partition(",")[0] for title in heard.beside_each_other[3:]],
    ]
    assert len([line for line in heard.lines if "a worker was killed by SIGKILL" in line]) == 1
    assert len([line for line in heard.lines if "finished after" in line]) == 8
    plain = Study(parse({**raw, "executor": {"class_path": "workbench.executors.InProcess"}}))
    plain.run()
    expected = end_of(plain.folder)
    assert len(expected) == 8 * (3 + 3 * 2 + 1) + 4  # tables, answers, weights; adapters
    assert end_of(beside.folder) == expected
