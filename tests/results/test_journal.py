"""The journal of a run: what a torn or a changed line does to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.results.journal import Journal


def test_a_journal_leaves_out_a_torn_end_and_refuses_a_changed_line(tmp_path: Path) -> None:
    file = tmp_path / "run" / "journal.jsonl"
    journal = Journal(file)
    for number in range(3):
        journal.append({"kind": "cell", "value": number})
    whole = file.read_bytes()
    for torn in (whole[:-1], whole[:-9], whole + b"0000"):
        file.write_bytes(torn)
        again = Journal(file)
        assert [record["value"] for record in again.records] == [0, 1, 2][: 2 if len(torn) < len(whole) else 3]
        again.append({"kind": "cell", "value": 9})
        assert Journal(file).records == again.records
        assert again.has(2, journal._sums[1])
        assert not again.has(2, journal._sums[0])
        assert not again.has(9, 0)
    file.write_bytes(whole.replace(b'"value": 1', b'"value": 7'))
    with pytest.raises(ConfigError, match=r"journal\.jsonl, line 2, is damaged\. Delete .*run to make it again"):
        Journal(file)
