"""A process that makes many studies holds no more after the last than after the first few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.studies import ROOT
from soak import held, make_study, prepare

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts")


@linux
def test_a_few_studies_leave_nothing_behind(tmp_path: Path) -> None:
    prepare(tmp_path)
    counts = []
    for number in range(5):
        make_study(tmp_path, number, ["lora"])
        counts.append(held())
    memory = [count.pop("resident bytes") for count in counts]
    assert counts[-1] == counts[2]
    assert memory[-1] < 1.05 * memory[2]


@linux
@pytest.mark.slow
def test_twenty_minutes_of_studies_leave_nothing_behind() -> None:
    command = [sys.executable, str(ROOT / "tests" / "end_to_end" / "soak.py"), "20"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
