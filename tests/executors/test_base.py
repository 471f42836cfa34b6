"""Executors that a study cannot have."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.config import parse
from workbench.errors import ConfigError
from workbench.study import Study

WORKERS = {"class_path": "workbench.executors.Workers"}


@pytest.mark.parametrize(
    ("executor", "problem"),
    [
        ({"class_path": "workbench.executors.Worker"},
         "executor.class_path: 'workbench.executors' has no class 'Worker'. Did you mean 'Workers'?"),
        ({**WORKERS, "init_args": {"count": 0}}, "executor: count is 0 and threads None; each has to be at least 1."),
        ({**WORKERS, "init_args": {"counts": 2}}, "executor.init_args.counts: Workers has no argument 'counts'."
                                                  " Did you mean 'count'?"),
        ({"class_path": "collections.Counter"}, "executor: collections.Counter makes no runs. "
                                                "Give one such as workbench.executors.Workers."),
    ],
)  # fmt: skip
def test_what_is_no_executor(raw: dict[str, Any], executor: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Study(parse({**raw, "executor": executor}))
    assert caught.value.problems == [problem]


def test_several_devices_and_several_workers_do_not_go_together(raw: dict[str, Any]) -> None:
    raw["trainer"] |= {"devices": 2, "strategy": "ddp"}
    small = Study(parse({**raw, "executor": WORKERS}))
    with pytest.raises(
        ConfigError, match=r"^executor: Workers executes each run in one process, and trainer\.devices asks"
    ):
        small.run()
    assert not small.folder.exists()
