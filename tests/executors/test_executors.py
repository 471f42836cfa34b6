"""Executors: the same bytes wherever runs are made, and what becomes of a run whose worker is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import ROOT, study, write_tasks
from omegaconf import OmegaConf

from workbench.config import load, parse
from workbench.display import Display
from workbench.errors import ConfigError
from workbench.executors import Workers
from workbench.study import Study

FRAIL = '''
"""A method whose process is killed as often as it is told, in the middle of a task."""
import os
import signal
import time
from pathlib import Path

from workbench.strategy import ContinualStrategy


class Frail(ContinualStrategy):
    def __init__(self, folder: str, deaths: int, sleep: float = 0.0) -> None:
        super().__init__()
        self.folder, self.deaths, self.sleep, self.steps, self.second = Path(folder), deaths, sleep, 0, False

    def before_task(self, backbone, task, batches) -> None:
        self.second, self.steps = task.name == "beta", 0

    def penalties(self, backbone, batch, output):
        self.steps += 1
        (self.folder / f"{os.getpid()}.pid").touch()
        time.sleep(self.sleep)
        met = len(list(self.folder.glob("death-*")))
        if self.second and self.steps == (1 if met else 3) and met < self.deaths:
            (self.folder / f"death-{met}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {}
'''
COMPARED = (
    "scores.csv",
    "nll.csv",
    "train.csv",
    "predictions/*.jsonl",
    "model/*.safetensors",
    "model/adapters/*/*.safetensors",
)
WORKERS = {"class_path": "workbench.executors.Workers"}
STOPS = [
    pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
]
SEVERAL = {
    "seqft": {"class_path": "strategies.SeqFT"},
    "lora": {"class_path": "strategies.LoRA", "init_args": {"rank": 2, "dropout": 0.2}},
}


class Heard(Display):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def raw(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three tasks of four steps, saved after each two, and a method that dies beside it."""
    (tmp_path / "frail.py").write_text(FRAIL, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("frail", None)
    tasks = write_tasks(tmp_path / "tasks", ("alpha", "beta", "gamma"), rows=16)
    return study(model_folder, tasks, tmp_path / "runs", save_every_n_steps=2, seeds=[0, 1])


def frail(tmp_path: Path, deaths: int, sleep: float = 0.0) -> dict[str, Any]:
    """The method that dies, as a YAML names it."""
    arguments = {"folder": str(tmp_path), "deaths": deaths, "sleep": sleep}
    return {"frail": {"class_path": "frail.Frail", "init_args": arguments}}


def end_of(folder: Path) -> dict[str, bytes]:
    """The compared files of a study by their path in it."""
    files = [file for pattern in COMPARED for file in folder.glob(f"*/*/*/{pattern}") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_workers_give_the_same_bytes_as_this_process_though_one_is_lost(raw: dict[str, Any], tmp_path: Path) -> None:
    """Strategies in two precisions, so that there are two rows 0, and two orders of some of the tasks."""
    lora = {**SEVERAL["lora"], "trainer": {"precision": "bf16-true"}}
    raw |= {"strategies": {**frail(tmp_path, deaths=1), **SEVERAL, "lora": lora}, "seeds": [0], "first_tasks": 2}
    raw["orders"] = {"up": ["alpha", "beta", "gamma"], "down": ["gamma", "beta", "alpha"]}
    beside, heard = Study(parse({**raw, "name": "beside", "executor": WORKERS})), Heard()
    others = beside.run(heard)
    plain = Study(parse(raw))
    rows = plain.run()
    assert [(row["strategy"], row["order"], row["OP"]) for row in others] == [
        (row["strategy"], row["order"], row["OP"]) for row in rows
    ]
    expected = end_of(plain.folder)
    assert len(expected) == 6 * (3 + 3 * 2 + 1) + 2  # tables, answers, weights; adapters
    assert end_of(beside.folder) == expected
    assert beside.failures == []
    assert sum("a worker was killed by SIGKILL" in line and "another one goes on" in line for line in heard.lines) == 1
    resumed = [beside.results(run).environment().get("resumed", {}).get("times", 0) for run in beside.runs]
    assert sorted(resumed) == [0, 0, 0, 0, 0, 1]
    assert "seqft, order down, seed 0: task 1 of 2 gamma" in heard.lines
    assert sum("finished after" in line for line in heard.lines) == 6
    config = load(beside.path(beside.runs[0]) / "config.yaml")
    assert config.executor.class_path == "workbench.executors.InProcess"
    again = Heard()
    Study(parse({**raw, "name": "beside"})).run(again)  # by another executor
    assert sum("finished before, kept" in line for line in again.lines) == 6


@pytest.mark.slow
def test_a_run_that_loses_two_workers_is_given_up_and_the_others_made(raw: dict[str, Any], tmp_path: Path) -> None:
    raw |= {"strategies": {**frail(tmp_path, deaths=2), **SEVERAL}, "seeds": [0]}
    small = Study(parse({**raw, "executor": {**WORKERS, "init_args": {"count": 2}}}))
    rows = small.run()
    (failure,) = small.failures
    assert failure.startswith("frail, order default, seed 0 failed: a worker was killed by SIGKILL")
    assert [row["strategy"] for row in rows] == ["seqft", "lora"]
    assert [row["strategy"] for row in Study(parse(raw)).run()] == ["frail", "seqft", "lora"]  # goes on with it here


@pytest.mark.parametrize(("number", "status"), STOPS)
def test_a_stop_ends_all_workers_at_once(raw: dict[str, Any], tmp_path: Path, number: int, status: int) -> None:
    raw |= {"strategies": frail(tmp_path, deaths=0, sleep=0.5), "executor": WORKERS}
    OmegaConf.save(OmegaConf.create(raw), tmp_path / "study.yaml")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-m", "workbench", "run", "study.yaml"]
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job has not
    try:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=subprocess.STDOUT)
    finally:
        signal.signal(signal.SIGINT, ignored)
    workers = pids(tmp_path, 2)
    process.send_signal(number)
    told = process.communicate(timeout=20)[0].decode()
    started = time.monotonic()
    while any(map(alive, workers)):
        assert time.monotonic() - started < 3.0
        time.sleep(0.05)
    assert process.returncode == status
    assert "Traceback" not in told


def pids(folder: Path, count: int) -> list[int]:
    """The processes in which a run is being made, as soon as there are so many."""
    deadline = time.monotonic() + 90
    while len(found := list(folder.glob("*.pid"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(file.stem) for file in found]


def alive(number: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be taken note of."""
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("executor", "problem"),
    [
        ({"class_path": "workbench.executors.Worker"},
         "executor.class_path: 'workbench.executors' has no class 'Worker'. Did you mean 'Workers'?"),
        ({**WORKERS, "init_args": {"count": 0}}, "executor: count is 0 and threads None; each has to be at least 1."),
        ({**WORKERS, "init_args": {"counts": 2}}, "executor.init_args.counts: Workers has no argument 'counts'."
                                                  " Did you mean 'count'?"),
        ({"class_path": "collections.Counter"}, "executor: collections.Counter makes no runs. "
                                                "Give one such as workbench.executors.Workers."),
    ],
)  # fmt: skip
def test_what_is_no_executor(raw: dict[str, Any], executor: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Study(parse({**raw, "executor": executor}))
    assert caught.value.problems == [problem]


def test_several_devices_and_several_workers_do_not_go_together(raw: dict[str, Any]) -> None:
    raw["trainer"] |= {"devices": 2, "strategy": "ddp"}
    small = Study(parse({**raw, "executor": WORKERS}))
    with pytest.raises(
        ConfigError, match=r"^executor: Workers executes each run in one process, and trainer\.devices asks"
    ):
        small.run()
    assert not small.folder.exists()


def test_an_error_in_a_worker_ends_the_study_as_it_does_here(raw: dict[str, Any], tmp_path: Path) -> None:
    raw |= {"seeds": [0], "executor": WORKERS, "strategies": {"seqft": SEVERAL["seqft"]}}
    small = Study(parse(raw))
    (tmp_path / "runs" / "small" / "seqft").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "seqft" / "default").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="default"):
        small.run()


@pytest.mark.slow
def test_a_worker_has_as_many_threads_as_it_is_given(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this process, unless the config says otherwise: sums depend on them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # or a small model has one
    for name, arguments, threads in (("as-here", {}, torch.get_num_threads()), ("two", {"threads": 2}, 2)):
        small = Study(parse({**raw, "seeds": [0], "name": name}))
        Workers(1, **arguments).make(small, Display())
        hardware = small.results(small.runs[0]).environment()["hardware"]
        assert hardware["threads"] == threads


@pytest.mark.slow
def test_a_ray_worker_that_is_killed_costs_no_number(raw: dict[str, Any], tmp_path: Path) -> None:
    """On a cluster of this machine, where two runs are made at a time."""
    pytest.importorskip("ray")
    raw["strategies"] = {**frail(tmp_path, deaths=1), **SEVERAL}
    OmegaConf.save(OmegaConf.create(raw), tmp_path / "study.yaml")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    for name, executor in (("far", "Ray"), ("here", "InProcess")):
        command = [sys.executable, "-m", "workbench", "run", "study.yaml", f"name={name}"]
        command += [f"executor.class_path=workbench.executors.{executor}"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, timeout=500, check=False)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        if name == "far":
            told = done.stdout.decode()
            assert told.count("its worker was lost") == 1
    expected = end_of(tmp_path / "runs" / "here")
    assert len(expected) == 6 * (3 + 4 * 3 + 1) + 2
    assert end_of(tmp_path / "runs" / "far") == expected
    runs = [load(file).seeds for file in sorted((tmp_path / "runs" / "far").glob("*/*/*/config.yaml"))]
    assert runs == [[0], [1]] * 3
