"""Ratios of what two ways take, measured in turn: a machine is noisy, and a ratio within one run is less so."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

RUNS = 5


@dataclass(frozen=True)
class Line:
    """One measured ratio.

    Args:
        what: In a few words.
        values: Of each paired run.
        bar: What it should be.
        at_least: Whether the bar is a least value; otherwise it is the most.
        unit: "×", "ms" or "of it".
    """

    what: str
    values: Sequence[float]
    bar: float | None = None
    at_least: bool = True
    unit: str = "×"

    @property
    def median(self) -> float:
        """Of the runs."""
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        """Whether the median reaches the bar."""
        return self.bar is None or (self.median >= self.bar if self.at_least else self.median <= self.bar)

    def __str__(self) -> str:
        spread = f"{min(self.values):.2f} to {max(self.values):.2f}, {len(self.values)} runs"
        bar = "" if self.bar is None else f"; {'≥' if self.at_least else '≤'} {self.bar:g}: "
        told = "" if self.bar is None else ("yes" if self.holds else "NO")
        return f"{self.what}: {self.median:.2f} {self.unit} ({spread}{bar}{told})"


def paired(
    ways: Mapping[str, Callable[[], float]], *, runs: int = RUNS, warm: bool = False, until: float = math.inf
) -> dict[str, list[float]]:
    """Runs all ways in turn, the first of them another one each time.

    Args:
        ways: Each gives the seconds that it took.
        runs: Rounds that are counted.
        warm: Whether all have run before; otherwise a round goes first that is not counted.
        until: A moment of `time.perf_counter`; no round begins that would end after it, the last one's length assumed.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    longest = 0.0
    for number in range(int(warm), runs + 1):
        started = time.perf_counter()
        if started + longest > until:
            break
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            seconds = ways[name]()
            if number:
                taken[name].append(seconds)
        longest = max(longest, time.perf_counter() - started)
    return taken


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times longer the first took, run by run."""
    return [one / other for one, other in zip(slow, fast, strict=True)]


def timed(work: Callable[[], object]) -> float:
    """Seconds of wall-clock time."""
    started = now()
    work()
    return now() - started


def now() -> float:
    """The moment at which a GPU has done all that it was given, in seconds of `time.perf_counter`."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def resident(which: str = "VmRSS") -> int:
    """Bytes now; "VmHWM": the most since the program began (`ru_maxrss` begins with that of who started it)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{which}:")[2].split()[0]) * 1024


def machine() -> str:
    """What the figures were measured on, in one line."""
    found = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    name = found[0].partition(": ")[2] if found else platform.processor()
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {torch.get_num_threads()} threads, load {load:.1f}, torch {torch.__version__}"


def commit() -> str:
    """The code's."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
