"""The rank that a launcher has set, before any process group exists."""

from __future__ import annotations

import pytest

from workbench.runtime.launch import launched_rank


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"WORLD_SIZE": "1", "RANK": "3"}, 0),
        ({"WORLD_SIZE": "4", "RANK": "3"}, 3),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "2"}, 2),
        ({"WORLD_SIZE": "4"}, 0),
    ],
)
def test_the_rank_of_a_launcher(variables: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank
