"""Peak memory and versions of a run."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from workbench.runtime import environment
from workbench.runtime.environment import PeakMemory, describe_environment

MEGABYTE = 2**20
CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts")


@linux
def test_the_peak_is_counted_from_its_own_start() -> None:
    first = PeakMemory(CPU)
    start = first.bytes()
    assert start is not None
    large = torch.ones(192 * MEGABYTE // 4)
    del large
    peak, second = first.bytes(), PeakMemory(CPU).bytes()
    assert peak is not None
    assert second is not None
    assert 180 * MEGABYTE < peak - start < 400 * MEGABYTE
    assert peak - second > 180 * MEGABYTE


@linux
def test_memory_of_earlier_runs_is_not_part_of_the_peak() -> None:
    """Neither memory that is still held nor freed small blocks count; the model does."""
    held = bytearray(b"1" * (64 * MEGABYTE))
    freed = [bytes(100) + str(index).encode() for index in range(500_000)]
    del freed
    memory = PeakMemory(CPU, model_bytes=3 * MEGABYTE)
    start = memory.bytes()
    used = [bytes(100) + str(index).encode() for index in range(500_000)]
    peak = memory.bytes()
    assert len(held) + len(used) > 0
    assert start is not None
    assert peak is not None
    assert 3 * MEGABYTE <= start < 8 * MEGABYTE
    assert 50 * MEGABYTE < peak - start < 150 * MEGABYTE


@linux
def test_without_a_reset_of_the_peak_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CLEAR", tmp_path / "no" / "clear_refs")
    assert PeakMemory(CPU).bytes() is None


def test_the_environment_names_what_computes_the_numbers() -> None:
    found = describe_environment()
    assert found["versions"]["torch"] == version("torch")
    assert found["hardware"]["threads"] == torch.get_num_threads()
