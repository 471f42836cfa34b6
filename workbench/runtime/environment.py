"""Versions, commit and hardware of a run, and its peak memory."""

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
"""Writing 5 to it resets Linux' peak of resident memory."""
STATUS = Path("/proc/self/status")


def describe_environment() -> dict[str, Any]:
    """Return the versions of the libraries, the workbench's commit, and the machine's hardware."""
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
    """Measures a run's peak memory since the object was created, including the model.

    On a GPU it is torch's peak of allocated memory. On a CPU it is the growth of the process's resident memory on
    Linux plus the model's size, so that the interpreter, the libraries and earlier runs do not count. Freed memory is
    first returned to the system, since it would otherwise be reused unnoticed; without glibc that is impossible, and
    nothing is reported.

    Args:
        device: Device of the model.
        model_bytes: Size of the model, which is already in memory.
        collect: Collect garbage first, so that what is freed later cannot hide growth; takes some tenths of a second.
    """

    def __init__(self, device: torch.device, model_bytes: int = 0, *, collect: bool = True) -> None:
        self.device = device
        self._start: int | None = None
        if collect:
            gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _reset_peak():
            start = _status_bytes("VmHWM:")
            self._start = None if start is None else start - model_bytes

    def bytes(self) -> int | None:
        """Return the peak so far in bytes; None where the system does not report it, such as on macOS."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = _status_bytes("VmHWM:")
        return None if self._start is None or peak is None else peak - self._start


def _reset_peak() -> bool:
    """Return free memory to the system and reset Linux' peak of resident memory; return False if impossible."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5", encoding="ascii")
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    return True


def _status_bytes(name: str) -> int | None:
    """Read an entry of the process's status in bytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the workbench's commit, with "+changes" if tracked files differ; None outside its repository."""
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
