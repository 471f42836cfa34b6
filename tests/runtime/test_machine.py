"""Cores, memory and threads that a process may use: read from a file system as a container has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from workbench.runtime.machine import usable_cores, usable_memory, using_threads

GIB = 1 << 30


def system(root: Path, files: dict[str, str]) -> Path:
    """Write the files of a system below a folder."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The affinity of this process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 3),
        ({"proc/self/cgroup": "4:memory:/x\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_affinity_and_of_the_quota(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert usable_cores(system(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n"}, 8 * GIB),
        ({"proc/meminfo": f"MemAvailable: {8 * GIB // 1024} kB\n", "proc/self/cgroup": "0::/\n",
          "sys/fs/cgroup/memory.max": f"{4 * GIB}\n", "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
          "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n"}, 3 * GIB),
        ({"proc/meminfo": f"MemAvailable: {8 * GIB // 1024} kB\n", "proc/self/cgroup": "0::/\n",
          "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": f"{3 * GIB}\n"}, 8 * GIB),
        ({"proc/meminfo": f"MemAvailable: {8 * GIB // 1024} kB\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
          "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n"}, GIB),
        ({"proc/meminfo": f"MemAvailable: {8 * GIB // 1024} kB\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
          "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n"}, 8 * GIB),
    ],
)  # fmt: skip
def test_memory_is_what_machine_and_container_leave(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    assert usable_memory(system(tmp_path, files)) == free


def test_threads_are_set_back() -> None:
    before = torch.get_num_threads()
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with using_threads(None):
        assert torch.get_num_threads() == before
