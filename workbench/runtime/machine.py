"""What this process may use of the machine: cores, memory, and threads of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

THREADS = "OMP_NUM_THREADS"
"""Environment variable with which a user sets the number of threads."""
UNLIMITED = 1 << 60
"""Bytes from which on a limit of the first cgroups means none."""


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use: by its affinity and by the quota of its container.

    Args:
        root: Root of the file system with /proc and /sys.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root) if (quota := _quota(folder)) is not None]
    old = root / "sys/fs/cgroup/cpu"
    limit, period = _number(old / "cpu.cfs_quota_us"), _number(old / "cpu.cfs_period_us")
    if limit and period and limit > 0:
        quotas.append(limit / period)
    return max(1, int(min([affinity, *quotas])))


def usable_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that are free for this process; None where the system does not say.

    The limit of a container counts if it leaves less than the machine has; file caches in it are free.

    Args:
        root: Root of the file system with /proc and /sys.
    """
    entries = _entries(root / "proc/meminfo")
    available = entries.get("MemAvailable:")
    free = [] if available is None else [available * 1024]
    for folder in _groups(root):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            free.append(limit - used + _entries(folder / "memory.stat").get("inactive_file", 0))
    old = root / "sys/fs/cgroup/memory"
    limit, used = _number(old / "memory.limit_in_bytes"), _number(old / "memory.usage_in_bytes")
    if limit is not None and used is not None and limit < UNLIMITED:
        free.append(limit - used + _entries(old / "memory.stat").get("total_inactive_file", 0))
    return max(0, min(free)) if free else None


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch use a number of threads within the context.

    Args:
        count: The number; None: as many as it uses now.
    """
    before = torch.get_num_threads()
    if count is not None and count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _groups(root: Path) -> list[Path]:
    """Return the folders of this process's control group and of the groups around it (cgroup v2)."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    path = next((line[3:].strip("/") for line in lines if line.startswith("0::")), None)
    if path is None:
        return []
    own = top / path
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]


def _quota(folder: Path) -> float | None:
    """Return the cores of a control group; None without a limit."""
    try:
        limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max"
        return None


def _entries(file: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    try:
        lines = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
