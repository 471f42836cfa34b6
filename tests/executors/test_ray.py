"""Runs as tasks of a Ray cluster on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.frail import SEVERAL, end_of, frail
from helpers.studies import ROOT
from omegaconf import OmegaConf

from workbench.config import load


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
