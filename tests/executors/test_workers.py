"""Runs in worker processes: the same bytes as in this process, and what becomes of a run whose worker is lost."""

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
from helpers.frail import SEVERAL, end_of, frail
from helpers.studies import ROOT
from omegaconf import OmegaConf

from workbench.config import load, parse
from workbench.display import Display
from workbench.executors import Workers
from workbench.executors.guard import GUARD
from workbench.study import Study

WORKERS = {"class_path": "workbench.executors.Workers"}
STOPS = [
    pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
]


class Heard(Display):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_workers_give_the_same_bytes_as_this_process_though_one_is_lost(raw: dict[str, Any], tmp_path: Path) -> None:
    """Strategies in two precisions, so that there are two rows 0."""
    lora = {**SEVERAL["lora"], "trainer": {"precision": "bf16-true"}}
    raw |= {"strategies": {**frail(tmp_path, deaths=1), **SEVERAL, "lora": lora}, "seeds": [0], "first_tasks": 2}
    beside, heard = Study(parse({**raw, "name": "beside", "executor": WORKERS})), Heard()
    others = beside.run(heard)
    plain = Study(parse(raw))
    rows = plain.run()
    assert [(row["strategy"], row["order"], row["OP"]) for row in others] == [
        (row["strategy"], row["order"], row["OP"]) for row in rows
    ]
    expected = end_of(plain.folder)
    assert len(expected) == 3 * (3 + 3 * 2 + 1) + 1  # tables, answers, weights; adapters
    assert end_of(beside.folder) == expected
    assert beside.failures == []
    lost = [line for line in heard.lines if "a worker was killed by SIGKILL" in line]
    assert [line.endswith("; another worker resumes the run.") for line in lost] == [True]
    resumed = [beside.results(run).environment().get("resumed", {}).get("times", 0) for run in beside.runs]
    assert sorted(resumed) == [0, 0, 1]
    assert "seqft, order default, seed 0: task 1 of 2 alpha" in heard.lines
    assert sum("finished after" in line for line in heard.lines) == 3
    config = load(beside.runs[0].folder / "config.yaml")
    assert config.executor.class_path == "workbench.executors.InProcess"
    again = Heard()
    Study(parse({**raw, "name": "beside"})).run(again)  # by another executor
    assert sum("finished before, kept" in line for line in again.lines) == 3


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


def test_a_script_without_a_guard_is_told_what_it_is_for(raw: dict[str, Any], tmp_path: Path) -> None:
    raw |= {"strategies": {"seqft": {"class_path": "strategies.SeqFT"}}, "seeds": [0, 1], "executor": WORKERS}
    OmegaConf.save(OmegaConf.create(raw), tmp_path / "small.yaml")
    script = "from workbench.study import Study\nStudy('small.yaml').run()\n"
    (tmp_path / "plain.py").write_text(script, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "plain.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, timeout=120, check=False)
    told = done.stderr.decode()
    assert done.returncode == 1
    assert told.splitlines()[-1] == f"error: {GUARD}"
    assert "Traceback" not in told


# -- speed

STUDY = {
    "name": "four",
    "seeds": [0, 1],
    "backbone": {"path": "mini"},
    "benchmark": {"class_path": "benchmarks.mini_trace.MiniTrace"},
    "strategies": {
        "seqft": {"class_path": "strategies.SeqFT"},
        "lora": {"class_path": "strategies.LoRA", "init_args": {"rank": 8}},
    },
    "optimizer": {"init_args": {"lr": 1e-3}},
    "data": {"batch_size": 32, "max_length": 256},
    "trainer": {"max_epochs": 3, "accelerator": "cpu"},
}


def seconds(folder: Path, name: str, *overrides: str, **variables: str) -> float:
    """What the command takes from its start to its end."""
    known = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment = known | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "workbench", "run", "four.yaml", f"name={name}", *overrides]
    started = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")
def test_two_workers_are_faster_than_the_default_process_and_than_one_thread(tmp_path: Path) -> None:
    OmegaConf.save(OmegaConf.create(STUDY), tmp_path / "four.yaml")
    two = seconds(tmp_path, "two", "executor.class_path=workbench.executors.Workers")
    default = seconds(tmp_path, "default")
    one = seconds(tmp_path, "one", OMP_NUM_THREADS="1")
    told = f"two workers {two:.0f} s, the default process {default:.0f} s, one thread {one:.0f} s"
    print(f"{told}; load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores")
    assert default / two >= 1.15, told
    assert one / two >= 1.7, told
    files = sorted((tmp_path / "runs" / "two").glob("*/*/*/scores.csv"))
    assert len(files) == 4
    for file in files:
        assert (
            tmp_path / "runs" / "one" / file.relative_to(tmp_path / "runs" / "two")
        ).read_bytes() == file.read_bytes()
