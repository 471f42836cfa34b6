"""What README tells a stranger to copy works as it stands there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.documents import block, reader

from workbench.runtime.files import read_csv
from workbench.testing.conformance import STRATEGY_CHECKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's own folder, outside the repository, with the file of README's example."""
    place = tmp_path_factory.mktemp("readers")
    reader("README.md", place)
    assert {file.name for file in place.iterdir()} == {"rehearsal.py"}
    return place


def lightning(folder: Path, *arguments: str) -> str:
    """Run the program, and return what it prints."""
    command = [sys.executable, "-m", "workbench", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.pages
def test_the_readers_own_method_keeps_to_the_contracts(folder: Path) -> None:
    assert lightning(folder, "check", "rehearsal.Rehearsal").count("ok: ") == len(STRATEGY_CHECKS) + 1


@pytest.mark.pages
def test_the_readers_own_method_appears_in_the_table(folder: Path) -> None:
    shown = shlex.split(block("README.md", "lightning check rehearsal").text.splitlines()[1])
    assert shown[:4] == ["lightning", "run", "quickstart", "name=mine"]
    small = "benchmark.init_args={train_rows: 32, test_rows: 8, validation_rows: 0}"
    others = [f"strategies.{name}=null" for name in ("lora", "block_expansion", "depth_up_scaling")]
    text = lightning(folder, *shown[1:], "trainer.max_epochs=1", small, *others)
    assert "│ rehearsal │" in text
    assert "│ seqft     │" in text
    rows = {strategy: folder / f"runs/mine/{strategy}/default/seed-0" for strategy in ("seqft", "rehearsal")}
    tokens = {name: [int(row["tokens"]) for row in read_csv(run / "costs.csv")] for name, run in rows.items()}
    assert tokens["rehearsal"][0] == tokens["seqft"][0]
    assert all(more > less for more, less in zip(tokens["rehearsal"][1:], tokens["seqft"][1:], strict=True))
