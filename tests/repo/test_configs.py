"""Every config that is shipped loads, and names only what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import lightning
import pytest
from helpers.studies import ROOT

from workbench.config import dump, load
from workbench.config.loading import shipped_configs
from workbench.config.validation import check, check_surroundings, check_trainer
from workbench.model_folder import SHIPPED

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_there_are_configs_and_each_is_found_by_its_name() -> None:
    assert CONFIGS
    assert sorted(shipped_configs().values()) == CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_clean(
    path: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    (tmp_path / "smollm2").symlink_to(SHIPPED["mini"])
    for name in re.findall(r"\$\{oc\.env:(\w+)\}", path.read_text(encoding="utf-8")):
        monkeypatch.setenv(name, "mini" if name == "WORKBENCH_MODEL" else str(task_folder))
    config = load(path)
    assert check(config) + check_trainer(config, lightning.Trainer) == []
    assert check_surroundings(config) == []
    (tmp_path / "again.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "again.yaml") == config
    assert path.read_text(encoding="utf-8").startswith("# "), "the first line says what it is, for `lightning list`"


def test_every_command_of_the_page_on_trace_is_clean(task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_MODEL", "mini")
    monkeypatch.setenv("WORKBENCH_TRACE", str(task_folder))
    page = (ROOT / "benchmarks" / "trace" / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True)[2:] for line in re.findall(r"^lightning run .*", page, re.MULTILINE)]
    assert len(commands) >= 10
    for name, *overrides in commands:
        config = load(name, overrides)
        assert check(config) + check_trainer(config, lightning.Trainer) == [], (name, overrides)
        assert config.data.batch_size * config.trainer["accumulate_grad_batches"] == 128, "rows in a step, as published"
