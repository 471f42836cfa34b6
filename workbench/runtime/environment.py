"""What a run was made with: versions, commit, hardware."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LIBRARIES = (
    "continual-workbench",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "datasets",
    "torchmetrics",
    "numpy",
)
CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def describe_environment() -> dict[str, Any]:
    """Versions of what computes the numbers, the workbench's commit, and the machine's hardware."""
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "commit": _commit(),
        "hardware": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
    }


class PeakMemory:
    """The most memory that a run has needed since the object was made: its model and what came on top.

    On a GPU it is what torch has allocated there. Elsewhere it is by how much the process has grown, as Linux counts
    resident memory, and the model that was there at the start: the interpreter, the libraries and what earlier runs
    have left are no part of it. What they have freed goes back to the system first, or it would be used again unseen;
    where that cannot be asked for (no glibc), nothing is claimed.

    Args:
        device: Where the model is.
        model_bytes: What the model takes that is there already.
        collect: Collect garbage first, so that what is freed later cannot hide growth; takes some tenths of a second.
    """

    def __init__(self, device: torch.device, model_bytes: int = 0, *, collect: bool = True) -> None:
        self.device = device
        self._start: int | None = None
        if collect:
            gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _give_back():
            start = _resident("VmHWM:")
            self._start = None if start is None else start - model_bytes

    def bytes(self) -> int | None:
        """The peak so far; None where the system does not count, such as on macOS."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = _resident("VmHWM:")
        return None if self._start is None or peak is None else peak - self._start


def _give_back() -> bool:
    """Gives what is free back to the system, and sets Linux' high-water mark to what is held now."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5", encoding="ascii")
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    return True


def _resident(name: str) -> int | None:
    """A line of the process's status, in bytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The workbench's own commit, "+changes" where files differ from it; None outside its repository."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
