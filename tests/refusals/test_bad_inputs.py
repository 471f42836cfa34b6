"""Each bad input is refused with a message that names the input and the remedy, and nothing is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import table_benchmarks
import table_config
import table_ends
import table_folders
import table_models
import table_processes
import table_runs
import table_strategies
from bad_inputs import Place, Row, outcome

from workbench.testing.conformance import ConformanceError
from workbench.testing.recorder import Unfinished
from workbench.testing.tiny import Stopped

TABLES = (
    table_config,
    table_folders,
    table_models,
    table_runs,
    table_ends,
    table_processes,
    table_strategies,
    table_benchmarks,
)
ROWS: list[Row] = [row for table in TABLES for row in table.ROWS]
WITHOUT_REMEDY = (Stopped, Unfinished, SystemExit, KeyboardInterrupt, ConformanceError)
"""What tells the program that something is over; and checks that failed, each of which states what has to hold."""
VERBS = (
    "get|add|begin|check|choose|combine|copy|define|delete|fix|fold|free|give|grow|leave|list|look|lower|make|name|rename|save|"
    "run|set|take|use|wait|write|download|hf download"
)
REMEDY = re.compile(
    rf"(?:^|[.:;,?)] )(?:or )?(?:{VERBS})\b|(?:has|have) to be|did you mean|expected|needs", re.IGNORECASE
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_bad_input_is_refused_with_a_remedy(row: Row, model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    found = outcome(row, Place(tmp_path / "place", model_folder, task_folder))
    if row.argv:
        assert found.status == row.status, found.out + found.told
        assert "Traceback" not in found.told
        assert all(
            line.startswith(("error: ", "- ", "interrupted. ", "terminated. ")) for line in found.told.splitlines()
        )
    else:
        assert isinstance(found.error, row.error), found
    for part in row.says:
        assert part in found.told
    by_the_system = isinstance(found.error, OSError) and found.error.errno  # its words, and not ours
    if row.error not in WITHOUT_REMEDY and not by_the_system:
        assert row.says
        assert REMEDY.search(found.told), found.told
    assert found.written == [] or row.leaves, found.written


def test_row_names_are_unique() -> None:
    names = [row.name for row in ROWS]
    assert sorted(set(names)) == sorted(names)
