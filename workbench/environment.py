"""What a run was made with: versions, commit, hardware."""

from __future__ import annotations

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
    """The most memory that this process has needed since the object was made.

    On a GPU it is what torch has allocated there. Elsewhere it is what Linux counts as resident: the interpreter and
    the libraries are part of it (hundreds of MB), and so is what earlier work has freed but not given back.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        gc.collect()
        try:
            CLEAR.write_text("5", encoding="ascii")  # from here on the high-water mark is today's
        except OSError:
            self._known = False

    def bytes(self) -> int | None:
        """The peak so far; None where the system does not count, such as on macOS."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self._known:
            return None
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The workbench's own commit, "+changes" where files differ from it; None outside its repository."""
    root = Path(__file__).parent.parent
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
