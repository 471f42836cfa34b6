"""The peak of resident memory of a few training steps, above what the imports take: a process of its own for each way.

`python tests/performance/peak.py workbench 256 4` prints bytes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from paired import RUNS, Line, ratios
from subjects import backbone, model, trace_task
from ways import hf_trainer, workbench

from strategies import SeqFT
from workbench.benchmark import Task

ROWS, LENGTH, LABELLED = 16, 512, 51
STEPS = 3
SIZES = {(256, 4): 0.5, (512, 8): 0.75}  # width, layers: the bar


def resident() -> int:
    """Bytes now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def peak(way: str, width: int, layers: int) -> int:
    """Bytes above those after the imports."""
    before = resident()
    task = trace_task("FOMC", ROWS * STEPS)
    words = [
        " ".join(str(2 + (row * LENGTH + place) % 31_000) for place in range(LENGTH)) for row in range(ROWS * STEPS)
    ]
    rows = [
        {"prompt": " ".join(text.split()[: LENGTH - LABELLED]), "answer": " ".join(text.split()[1:LABELLED])}
        for text in words
    ]
    task = Task("long", task.test, task.train.from_list(rows), scorers=task.scorers, max_new_tokens=LABELLED)
    own = backbone(width, layers)
    if way == "workbench":
        workbench(own, SeqFT(), [task], batch_size=ROWS)
    else:
        plain = model(width, layers)
        del own.model
        hf_trainer(plain, own, [task], batch_size=ROWS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measure() -> Iterator[Line]:
    """Of the workbench over HF Trainer's."""
    for (width, layers), bar in SIZES.items():
        taken: dict[str, list[float]] = {"workbench": [], "hf": []}
        for _ in range(RUNS):
            for way, found in taken.items():
                command = [sys.executable, __file__, way, str(width), str(layers)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(float(done.stdout.split()[-1]))
        told = " and ".join(f"{min(found) / 2**20:.0f} MiB" for found in taken.values())
        title = f"peak memory, {ROWS} × {LENGTH}, a tenth labelled, {width} × {layers}: workbench / HF Trainer ({told})"
        yield Line(title, ratios(taken["workbench"], taken["hf"]), bar, at_least=False)


if __name__ == "__main__":
    print(peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
