"""`make bench`: the workbench beside what a user would otherwise run, on the same rows, weights and precision.

`python tests/performance training scoring` measures these parts; without a name, all. Each has a process of its own,
and its lines go to `tests/performance/results/<date>-<part>.md` too.
"""

from __future__ import annotations

import datetime
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import frozen_layers
import growth
import peak
import scoring
import smollm2
import training
import transformers
from paired import commit, machine

PARTS = {
    "training": training.measure,
    "frozen": frozen_layers.measure,
    "scoring": scoring.measure,
    "scoring50m": scoring.measure_large,
    "memory": peak.measure,
    "scoring_memory": peak.measure_scoring,
    "smollm2": smollm2.measure,
}
GROWTH = "growth"


def main(names: list[str]) -> None:
    """Measures the parts of these names, one after the other."""
    names = names or [*PARTS, GROWTH]
    if unknown := [name for name in names if name not in (*PARTS, GROWTH)]:
        raise SystemExit(f"There is no part {unknown[0]!r}. Choose from {', '.join((*PARTS, GROWTH))}.")
    if len(names) == 1:
        measure(names[0])
        return
    for name in names:
        if status := subprocess.run([sys.executable, str(Path(__file__).parent), name], check=False).returncode:
            raise SystemExit(status)


def measure(name: str) -> None:
    """Prints each line of a part as it is known, and keeps it in a file."""
    _quiet()
    folder = Path(__file__).with_name("results")
    folder.mkdir(exist_ok=True)
    file = folder / f"{datetime.date.today()}-{name}.md"
    print(machine(), flush=True)
    with file.open("w", encoding="utf-8", buffering=1) as kept:  # line by line: it is there if the rest is stopped
        kept.write(f"# {datetime.date.today()}, commit {commit()}\n\n{machine()}\n\n")
        if name == GROWTH:
            kept.write(f"{growth.table()}\n")
        for line in PARTS[name]() if name in PARTS else ():
            print(line, flush=True)
            kept.write(f"- {line}\n")
    print(f"written to {file}")


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


main(sys.argv[1:])
