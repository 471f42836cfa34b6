"""What is recorded of the machine: above all the memory that a run has needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from workbench import environment
from workbench.environment import PeakMemory, describe_environment

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
def test_where_the_mark_cannot_be_set_back_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CLEAR", tmp_path / "no" / "clear_refs")
    assert PeakMemory(CPU).bytes() is None


def test_the_environment_names_what_computes_the_numbers() -> None:
    found = describe_environment()
    assert found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["threads"] == torch.get_num_threads()
