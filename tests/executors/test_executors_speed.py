"""How much faster four runs are made by two workers; for a machine of two cores or more that does nothing else.

`python -m pytest -m slow -s tests/test_executors_speed.py` prints the seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.studies import ROOT
from omegaconf import OmegaConf

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
WORKERS = "executor.class_path=workbench.executors.Workers"


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
    two = seconds(tmp_path, "two", WORKERS)
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
