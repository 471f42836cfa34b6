"""A report of very many runs: one command, in a time that one waits for, and on a page that one can read."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.made_runs import make_run
from helpers.studies import ROOT
from helpers.tables import printed

from workbench.report import compare
from workbench.report.terminal import MATRICES_PRINTED, MOST_WARNINGS, by_domain, sentences

SECONDS = 30


def many(folder: Path, strategies: int, orders: int, seeds: int) -> Path:
    for order in range(orders):
        for strategy in range(strategies):
            for seed in range(seeds):
                make_run(folder, f"s{strategy}", seed, order_name=f"o{order}")
    return folder


def test_few_matrices_are_printed_and_many_are_pointed_at(tmp_path: Path) -> None:
    few = list(by_domain(compare([many(tmp_path / "few", 2, 1, MATRICES_PRINTED // 2)]), 120))
    assert [getattr(told, "title", told) for told in few] == [
        *(f"s{name}, order o0, seed {seed}" for name in range(2) for seed in range(MATRICES_PRINTED // 2)),
        "domain by domain, mean over seeds and orders",
    ]
    means, line = by_domain(compare([many(tmp_path / "many", 1, 1, MATRICES_PRINTED + 1)]), 120)
    assert printed(means)[0] == ["untouched", "0.10", "0.20", "0.50"]
    assert str(line).startswith(f"The score matrices of {MATRICES_PRINTED + 1} runs are in report.html, and each in")


def test_a_terminal_is_not_flooded_with_warnings(tmp_path: Path) -> None:
    comparison, *_ = compare([many(tmp_path, MOST_WARNINGS + 4, 1, 1)])
    assert len(comparison.warnings) > MOST_WARNINGS
    *told, last = sentences(comparison)
    assert told == comparison.warnings[:MOST_WARNINGS]
    assert last == f"{len(comparison.warnings) - MOST_WARNINGS} more sentences like these are in report.html."


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(10, 10, 10), (100, 1, 10), (2, 100, 5)], ids=str)
def test_a_thousand_runs_are_reported_in_thirty_seconds(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """Seconds of one core: whatever else runs on the machine is left out."""
    folder = many(tmp_path / "made", *shape)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "report", str(folder)], env=surroundings, capture_output=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr.decode()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= SECONDS
    assert (folder / "report.html").stat().st_size < 8_000_000
