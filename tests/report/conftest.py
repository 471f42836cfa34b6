"""Studies that several tests of reports read."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.run_folders import scores, write_run, write_two_strategies


@pytest.fixture
def two_strategies(tmp_path: Path) -> Path:
    """Three seeds of seqft and of lora, in one order."""
    return write_two_strategies(tmp_path / "s")


@pytest.fixture
def two_orders(two_strategies: Path) -> Path:
    """The same, and one seed of seqft in a second order."""
    write_run(two_strategies, ("seqft", "2", 0), scores(0.7), strategies=["seqft", "lora"])
    return two_strategies
