"""Execute small studies back to back in one process: it holds no more at the end than after the fifth.

`python tests/end_to_end/soak.py MINUTES` prints a line for each study, and how each count grew since the fifth; at
least eight studies are executed. Its exit status is 1 if resident memory, open files or threads are more than 5 % off.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from helpers.studies import study, write_tasks

from workbench.config import parse
from workbench.display import quiet
from workbench.study import Study
from workbench.testing.tiny import tiny_backbone

STRATEGIES = {
    "seqft": {"class_path": "strategies.SeqFT"},
    "lora": {"class_path": "strategies.LoRA", "init_args": {"rank": 2, "policy": "merge"}},
    "blocks": {"class_path": "strategies.BlockExpansion", "init_args": {"groups": 2}},
    "scaled": {"class_path": "strategies.DepthUpScaling", "init_args": {"dropped": 0}},
    "calm": {"class_path": "strategies.CALM", "init_args": {"augmenting": "micro", "connections": 2}},
    "replay": {"class_path": "strategies.Replay", "init_args": {"share": 0.3}},
}
SETTLED = 5
LEAST = 8
MOST_OFF = 0.05


def held() -> dict[str, int]:
    """What this process holds now: bytes in memory, open files, Python's threads and the system's."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "resident bytes": pages * resource.getpagesize(),
        "open files": len(os.listdir("/proc/self/fd")),
        "Python threads": threading.active_count(),
        "threads": len(os.listdir("/proc/self/task")),
    }


def prepare(folder: Path) -> None:
    """Makes what all studies use: a model and tasks."""
    tiny_backbone(num_hidden_layers=2).save(folder / "model")
    write_tasks(folder / "tasks")


def make_study(folder: Path, number: int, names: Sequence[str] = tuple(STRATEGIES)) -> None:
    """Makes a study in a folder that is deleted; every second one has workers that load batches."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        data = {"batch_size": 4, "max_length": 64, "num_workers": number % 2}
        chosen = {name: STRATEGIES[name] for name in names}
        raw = study(folder / "model", folder / "tasks", Path(output), strategies=chosen, data=data)
        made = Study(parse(raw | {"save_every_n_steps": 2, "score_every_n_steps": 2}))
        made.run()
        if made.failures:
            raise RuntimeError("; ".join(made.failures))


def main(minutes: float) -> int:
    """Makes studies for so many minutes; 1 where something grew or shrank."""
    torch.set_num_threads(1)
    quiet()
    counts: list[dict[str, int]] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        while len(counts) < LEAST or time.monotonic() - started < 60 * minutes:
            make_study(folder, len(counts))
            counts.append(held())
            told = ", ".join(f"{value} {what}" for what, value in counts[-1].items())
            print(f"study {len(counts)}, {time.monotonic() - started:.0f} s: {told}", flush=True)
    off = {what: counts[-1][what] / settled - 1 for what, settled in counts[SETTLED - 1].items()}
    for what, share in off.items():
        print(
            f"{what}: {counts[SETTLED - 1][what]} after study {SETTLED}, {counts[-1][what]} at the end ({share:+.1%})"
        )
    return int(any(abs(share) > MOST_OFF for share in off.values()))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
