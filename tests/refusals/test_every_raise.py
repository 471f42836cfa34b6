"""No `raise` without a bad input that reaches it, and for each bad input a message that says how it is mended."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
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
from bad_inputs import Outcome, Place, Row, every_raise, outcome
from helpers.studies import ROOT

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
    "get|add|begin|choose|combine|copy|define|delete|fold|free|give|grow|leave|list|look|make|mend|name|rename|save|set|take|"
    "use|wait|write|download|hf download"
)
REMEDY = re.compile(
    rf"(?:^|[.:;,?)] )(?:or )?(?:{VERBS})\b|(?:has|have) to be|did you mean|expected|needs", re.IGNORECASE
)
Try = Callable[[Row], Outcome]


@pytest.fixture(scope="session")
def attempt(model_folder: Path, task_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Try:
    """Tries a row in a folder of its own, once in all tests."""
    base, numbers = tmp_path_factory.mktemp("refusals"), count()
    places: dict[Row, Place] = {}

    def attempt(row: Row) -> Outcome:
        if row not in places:
            places[row] = Place(base / str(next(numbers)), model_folder, task_folder)
        return outcome(row, places[row])

    return attempt


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_bad_input_is_refused_in_words(row: Row, attempt: Try) -> None:
    found = attempt(row)
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


def test_names_of_rows_are_unique() -> None:
    names = [row.name for row in ROWS]
    assert sorted(set(names)) == sorted(names)


def test_every_raise_is_reached(attempt: Try) -> None:
    reached = set().union(*(attempt(row).passed for row in ROWS))
    unreached = [
        f"{Path(file).relative_to(ROOT)}:{line}: {text}"
        for (file, line), (end, text) in every_raise().items()
        if not any((file, at) in reached for at in range(line, end + 1))
    ]
    assert not unreached, "\n".join(unreached)
