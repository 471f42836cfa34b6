"""The peak of resident memory, above what the imports take, of a few training steps and of scoring.

Each way has a process of its own: `python tests/performance/peak.py workbench 256 4` prints bytes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from paired import RUNS, Line, ratios, resident
from scoring import BATCH, LARGE, OTHERS, SMALL, file_order, tokens_of
from subjects import backbone, model, trace_task
from ways import hf_trainer, workbench

from strategies import SeqFT
from workbench.benchmark import Task

ROWS, LENGTH, LABELLED = 16, 512, 51
STEPS = 3
SIZES = {(256, 4): 0.5, (512, 8): 0.75}  # width, layers: the bar


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
        own.model.to("meta")  # without weights: it only encodes
        hf_trainer(plain, own, [task], batch_size=ROWS)
    return resident("VmHWM") - before


def scoring(way: str, width: int, layers: int) -> int:
    """Bytes above those after the imports, of answers to prompts with the lengths of TRACE's longest."""
    before = resident()
    size = next(size for size in (SMALL, LARGE) if size.shape == (width, layers))
    task = trace_task("MeetingBank", 2 * size.at_once, OTHERS)
    own = backbone(width, layers, size.longest_prompt, OTHERS)
    own.eval_batch_size = size.at_once
    prompts = task.train["prompt"][:]
    if way == "greedy":
        own.generate(prompts, OTHERS)
    else:
        file_order(own.eval(), task, tokens_of(own, task, prompts))
    return resident("VmHWM") - before


WAYS = {"workbench": peak, "hf": peak, "greedy": scoring, "generate": scoring}


def measure() -> Iterator[Line]:
    """Of the workbench's training over HF Trainer's."""
    for (width, layers), bar in SIZES.items():
        what = f"peak memory, {ROWS} × {LENGTH}, a tenth labelled, {width} × {layers}: workbench / HF Trainer"
        yield _beside(what, ("workbench", "hf"), (width, layers), bar)


def measure_scoring() -> Iterator[Line]:
    """Of the workbench's answers over that of `generate`, each with the rows at once that `scoring` gives it."""
    for size in (SMALL, LARGE):
        rows = f"{size.at_once} rows at once beside {BATCH}, prompts of {size.longest_prompt} tokens"
        what = f"peak memory, {rows}, {size.shape[0]} × {size.shape[1]}: workbench / generate"
        yield _beside(what, ("greedy", "generate"), size.shape, 1.0)


def _beside(what: str, ways: tuple[str, str], size: tuple[int, int], bar: float) -> Line:
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(RUNS):
        for way, found in taken.items():
            command = [sys.executable, __file__, way, *map(str, size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(float(done.stdout.split()[-1]))
    told = " and ".join(f"{min(found) / 2**20:.0f} MiB" for found in taken.values())
    return Line(f"{what} ({told})", ratios(*taken.values()), bar, at_least=False)


if __name__ == "__main__":
    print(WAYS[sys.argv[1]](sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
