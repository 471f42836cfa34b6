"""Other processes that tests start: programs of trials, and ranks of a process group."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from helpers.studies import ROOT
from torch import distributed

from workbench.runtime.distributed import barrier


def output_of(script: str, *arguments: str) -> str:
    """What a script of trials prints; it has to end well."""
    command = [sys.executable, str(ROOT / "tests" / "end_to_end" / script), *arguments]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on_ranks(function: Any, folder: Path, count: int = 3) -> list[Any]:
    """What a function of the folder gives in each of some processes that have found each other."""
    context = get_context("fork")
    processes = [context.Process(target=_one, args=(function, folder, place, count)) for place in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(folder / f"result-{place}", weights_only=True) for place in range(count)]


def _one(function: Any, folder: Path, place: int, count: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=place, world_size=count)
    torch.save(function(folder), folder / f"result-{place}")
    barrier()
    distributed.destroy_process_group()
