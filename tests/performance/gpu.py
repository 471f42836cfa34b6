"""Training, scoring and resume on a GPU, beside HF Trainer, peft and `generate`, within a budget of seconds.

`python tests/performance/gpu.py results.json --seconds 600` measures on the first GPU, and on the CPU where there is
none; `--small` makes all parts in small, to try the program. Each part is a process of its own with a limit of its own:
one that fails, or takes too long, does not stop the others. Results are printed and written as they come.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flops
import gpu_resume
import gpu_scoring
import gpu_training
import torch
import transformers
from gpu_shared import Result, device_name
from paired import commit, machine

ROOT = Path(__file__).parents[2]
MARK = "RESULT "
MEASURES: dict[str, Callable[[flops.Shape, float], Iterator[Result]]] = {
    "training": gpu_training.measure,
    "scoring": gpu_scoring.measure,
    "resume": gpu_resume.measure,
}
STUDY = "smollm2_trace"
LEAST_FOR_STUDY = 60.0
"""Seconds that have to be left for it."""


@dataclass(frozen=True)
class Part:
    """What one process measures.

    Args:
        measure: A name of `MEASURES`.
        shape: Title of the model's shape.
        weight: Its share of the time, relative to the other parts'.
    """

    measure: str
    shape: str
    weight: float

    @property
    def name(self) -> str:
        """As it is given to `--parts`."""
        return f"{self.measure}-{self.shape}"


SHAPES = {shape.title: shape for shape in (flops.SMALL, flops.M135, flops.B1)}
PARTS = (
    Part("training", "135M", 25),
    Part("scoring", "135M", 12),
    Part("resume", "135M", 20),
    Part("training", "1B", 28),
    Part("scoring", "1B", 15),
)
SMALL_PARTS = (Part("training", "small", 35), Part("scoring", "small", 20), Part("resume", "small", 45))


def limit(parts: Sequence[Part], remaining: float) -> float:
    """Return the seconds of the first of these parts: what earlier ones have left over is divided among all.

    Args:
        parts: That are still to be made.
        remaining: Seconds of the budget.
    """
    return remaining * parts[0].weight / sum(part.weight for part in parts)


class Report:
    """All results so far, printed as they come and written to a file each time."""

    def __init__(self, file: Path, seconds: float, small: bool) -> None:
        self.file = file
        self.content: dict[str, Any] = {
            "device": device_name(),
            "peak_flops_assumed": flops.peak_flops(device_name()),
            "flops_formula": flops.FORMULA,
            "machine": machine(),
            "commit": commit(),
            "budget_seconds": seconds,
            "small": small,
            "results": [],
        }
        for key in ("device", "peak_flops_assumed", "machine", "commit"):
            print(f"{key}: {self.content[key]}", flush=True)

    def add(self, result: Mapping[str, Any]) -> None:
        """Print a result and write all."""
        values = ", ".join(f"{key} {_short(value)}" for key, value in result.items() if key not in ("part", "what"))
        print(f"[{result['part']}, on {self.content['device']}] {result['what']}: {values}", flush=True)
        self.content["results"].append(result)
        partial = self.file.with_name(self.file.name + ".partial")
        text = json.dumps(_without_nan(self.content), indent=1, allow_nan=False)  # null: not measured
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, self.file)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_part(part: Part, seconds: float, add: Callable[[Mapping[str, Any]], None]) -> None:
    """Measure a part in a process of its own, which is killed with all that it has started when its time is over."""
    command = [sys.executable, __file__, "--child", part.name, "--seconds", f"{seconds:.1f}"]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors, tempfile.TemporaryDirectory() as scratch:
        environment = _environment() | {"TMPDIR": scratch}  # what a killed part leaves behind goes too
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
        ) as process:
            late = threading.Timer(seconds, lambda: os.killpg(process.pid, signal.SIGKILL))
            late.start()
            try:
                for line in process.stdout or ():
                    if line.startswith(MARK):
                        add({"part": part.name, **json.loads(line.removeprefix(MARK))})
                status = process.wait()
            finally:  # also where this program is stopped
                late.cancel()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if status:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["nothing on stderr"])[-1]
            reason = "its time was over" if time.perf_counter() - started >= seconds else f"status {status}: {last}"
            add({"part": part.name, "what": "stopped", "failed": reason})


def first_gpu(environment: Mapping[str, str]) -> str:
    """Return the one device that is measured: HF Trainer would use all that it sees."""
    return environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"CUDA_VISIBLE_DEVICES": first_gpu(os.environ), "PYTHONPATH": paths}


def child(name: str, seconds: float) -> None:
    """Measure a part in this process; each result is a line."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    part = next(each for each in (*PARTS, *SMALL_PARTS) if each.name == name)
    if part in SMALL_PARTS:
        torch.set_num_threads(1)  # a second one would only wait
    until = time.perf_counter() + 0.9 * seconds
    for result in MEASURES[part.measure](SHAPES[part.shape], until):
        print(MARK + json.dumps(result), flush=True)


def run_study(seconds: float, folder: Path, add: Callable[[Mapping[str, Any]], None]) -> None:
    """Run the study of a real model whole, where its config and its data exist, and as far as time allows."""
    missing = [
        what
        for what, there in (
            (f"configs/{STUDY}.yaml", (ROOT / "configs" / f"{STUDY}.yaml").is_file()),
            ("WORKBENCH_TRACE", bool(os.environ.get("WORKBENCH_TRACE"))),
            (f"{LEAST_FOR_STUDY:.0f} s", seconds >= LEAST_FOR_STUDY),
        )
        if not there
    ]
    if missing:
        add({"part": "study", "what": STUDY, "left_out": f"there is no {' and no '.join(missing)}"})
        return
    output = folder / "runs"
    command = [sys.executable, "-m", "workbench", "run", STUDY, f"output={output}"]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=_environment(), start_new_session=True)
    try:
        status: int | str = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # it can be resumed by the same command
        status = f"stopped, its time was over; resume it by: lightning run {STUDY} output={output}"
        process.wait()
    summary = output / STUDY / "summary.csv"
    table = summary.read_text(encoding="utf-8").splitlines() if summary.is_file() else []
    add({"part": "study", "what": STUDY, "seconds": time.perf_counter() - started, "status": status, "summary": table})


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("gpu.json"), help="where the results go, as JSON")
    parser.add_argument("--seconds", type=float, default=600.0, help="of all parts together")
    parser.add_argument("--small", action="store_true", help="a tiny model and few steps")
    parser.add_argument("--parts", nargs="+", help="some of: " + " ".join(part.name for part in (*PARTS, *SMALL_PARTS)))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if given.child:
        child(given.child, given.seconds)
        return
    known = SMALL_PARTS if given.small else PARTS
    names = [part.name for part in known]
    if unknown := [name for name in given.parts or () if name not in (*names, "study")]:
        parser.error(f"There is no part {unknown[0]!r} here. Choose from {', '.join(names)}, study.")
    end = time.perf_counter() + given.seconds
    report = Report(given.file, given.seconds, given.small)
    parts = [part for part in known if not given.parts or part.name in given.parts]
    for place, part in enumerate(parts):
        run_part(part, limit(parts[place:], end - time.perf_counter()), report.add)
    if not given.small and (not given.parts or "study" in given.parts):
        run_study(end - time.perf_counter(), given.file.resolve().parent, report.add)
    print(f"written to {given.file}", flush=True)


if __name__ == "__main__":
    main()
