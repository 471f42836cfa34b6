"""A method whose process is killed in the middle of a task, and the files in which two studies are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FRAIL = '''
"""A method whose process is killed in the middle of a task, so many times."""
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
SEVERAL = {
    "seqft": {"class_path": "strategies.SeqFT"},
    "lora": {"class_path": "strategies.LoRA", "init_args": {"rank": 2, "dropout": 0.2}},
}


def frail(tmp_path: Path, deaths: int, sleep: float = 0.0) -> dict[str, Any]:
    """Return the method, as a YAML names it."""
    arguments = {"folder": str(tmp_path), "deaths": deaths, "sleep": sleep}
    return {"frail": {"class_path": "frail.Frail", "init_args": arguments}}


def end_of(folder: Path) -> dict[str, bytes]:
    """Return the compared files of a study by their path in it."""
    files = [file for pattern in COMPARED for file in folder.glob(f"*/*/*/{pattern}") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
