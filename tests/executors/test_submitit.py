"""Runs as jobs that submitit submits to this machine: real processes with its own protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.frail import SEVERAL, end_of, frail
from helpers.studies import ROOT

from workbench.config import parse
from workbench.display import Display
from workbench.errors import ConfigError
from workbench.executors import Submitit
from workbench.study import Study

pytest.importorskip("submitit")

LOCAL = {"class_path": "workbench.executors.Submitit", "init_args": {"cluster": "local", "threads": 1}}


class Heard(Display):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_a_job_that_is_killed_is_submitted_once_more_and_costs_no_number(raw: dict[str, Any], tmp_path: Path) -> None:
    raw |= {"strategies": {**frail(tmp_path, deaths=1), "seqft": SEVERAL["seqft"]}, "seeds": [0], "first_tasks": 2}
    far, heard = Study(parse({**raw, "name": "far", "executor": LOCAL})), Heard()
    rows = far.run(heard)
    assert [row["strategy"] for row in rows] == ["frail", "seqft"]
    assert far.failures == []
    lost = [line for line in heard.lines if "was lost" in line]
    assert [line.endswith("; another job resumes the run.") for line in lost] == [True]
    assert lost[0].startswith("frail, order default, seed 0: job ")
    assert sum("finished after" in line for line in heard.lines) == 2
    logs = far.folder / "slurm"
    assert f"executor: the jobs run on local; their logs are in {logs}." in heard.lines
    assert len(list(logs.glob("*_submitted.pkl"))) == 1 + 2 + 1  # row 0, the runs, and once more
    plain = Study(parse(raw))
    plain.run()
    assert end_of(far.folder) == end_of(plain.folder) != {}
    again = Heard()
    Study(parse({**raw, "name": "far", "executor": LOCAL})).run(again)
    assert sum("finished before, kept" in line for line in again.lines) == 2


@pytest.mark.slow
def test_a_run_that_loses_its_job_too_often_is_given_up(raw: dict[str, Any], tmp_path: Path) -> None:
    raw |= {"strategies": frail(tmp_path, deaths=2), "seeds": [0], "first_tasks": 2}
    init = {**LOCAL["init_args"], "retries": 1, "folder": str(tmp_path / "logs")}
    small = Study(parse({**raw, "executor": {**LOCAL, "init_args": init}}))
    assert small.run() == []
    (failure,) = small.failures
    assert failure.startswith("frail, order default, seed 0 failed: job ")
    assert failure.endswith(", 2 times. The same command resumes it.")
    assert not (small.folder / "slurm").exists()
    assert [row["strategy"] for row in Study(parse(raw)).run()] == ["frail"]


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_by_submitit_and_resumes(raw: dict[str, Any], tmp_path: Path) -> None:
    """The signal that SLURM sends before it takes a job away."""
    raw |= {"strategies": frail(tmp_path, deaths=0, sleep=0.3), "seeds": [0], "first_tasks": 2}
    (tmp_path / "script.py").write_text(
        "import sys\nfrom workbench.config import parse\nfrom workbench.study import Study\n"
        f"study = Study(parse({ {**raw, 'executor': LOCAL}!r}))\nprint(len(study.run()), study.failures)\n",
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=environment, stdout=-1)
    first = trained_by(tmp_path, {process.pid})  # which makes the plan
    os.kill(first, signal.SIGUSR2)
    second = trained_by(tmp_path, {process.pid, first})
    told = process.communicate(timeout=300)[0].decode()
    assert told.splitlines()[-1] == "1 []"
    assert second != first
    small = Study(parse(raw))
    assert small.results(small.runs[0]).environment()["resumed"] == {"times": 1}
    assert len(list((small.folder / "slurm").glob("*_result.pkl"))) == 2  # row 0 and the run, whose job is one


@pytest.mark.slow
def test_jobs_on_this_machine_end_with_the_process_that_submitted_them(raw: dict[str, Any], tmp_path: Path) -> None:
    raw |= {"strategies": frail(tmp_path, deaths=0, sleep=0.5), "seeds": [0], "executor": LOCAL}
    (tmp_path / "script.py").write_text(
        f"from workbench.config import parse\nfrom workbench.study import Study\nStudy(parse({raw!r})).run()\n",
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=environment)
    job = trained_by(tmp_path, {process.pid})  # which makes the plan
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{job}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def trained_by(folder: Path, others: set[int]) -> int:
    """The process in which the run is being made, as soon as there is one that is none of the others."""
    deadline = time.monotonic() + 120
    while not (found := {int(file.stem) for file in folder.glob("*.pid")} - others):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found.pop()


def test_a_parameter_that_submitit_does_not_know_is_refused_by_name(raw: dict[str, Any], tmp_path: Path) -> None:
    executor = Submitit(cluster="local", parameters={"slurm_partitions": "gpu"})
    with pytest.raises(ConfigError, match=r"^executor: submitit refuses: .*partitions.*Fix executor\.init_args\."):
        executor._connect(tmp_path / "logs")


def test_slurm_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^executor: submitit refuses: .*srun.*Fix executor\.init_args\."):
        Submitit(cluster="slurm")._connect(tmp_path / "logs")


def test_parameters_go_to_submitit_as_they_are(tmp_path: Path) -> None:
    given = {"cpus_per_task": 4, "gpus_per_node": 1, "slurm_partition": "gpu", "slurm_mem": "16GB"}
    executor = Submitit(cluster="local", timeout_min=90, parameters=given)._connect(tmp_path / "logs")
    assert executor.parameters["timeout_min"] == 90
    assert executor.parameters["gpus_per_node"] == 1
