"""A method's code is one of a run's inputs, wherever the method is written."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from strategies import LoRA, SeqFT
from workbench.study.resume import fingerprint_code

CELL = """
class Mine:
    {attribute}
    def penalties(self):
        return {strength}
"""


def written_in_a_cell(monkeypatch: pytest.MonkeyPatch, text: str, name: str = "/cells/1.py") -> Any:
    """A class as a notebook has it: of `__main__`, which has no file, and of a cell that linecache knows."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name))
    exec(compile(text, name, "exec"), vars(main))  # noqa: S102, as a notebook does with its cells
    return vars(main)["Mine"]


def test_a_method_in_a_file_is_known_by_the_file(tmp_path: Path) -> None:
    assert fingerprint_code([SeqFT]) != fingerprint_code([LoRA])
    assert fingerprint_code([SeqFT]) == fingerprint_code([SeqFT])


def test_a_method_in_a_notebook_is_known_by_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        CELL.format(attribute=f"share = {share}", strength=strength) for share, strength in [(1, 2), (1, 3), (2, 2)]
    ]
    found = [fingerprint_code([written_in_a_cell(monkeypatch, text)]) for text in texts]
    assert len(set(found)) == 3
    moved = fingerprint_code([written_in_a_cell(monkeypatch, texts[0], "/cells/2.py")])
    assert moved == found[0]


def test_a_class_without_a_source_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = written_in_a_cell(monkeypatch, "class Mine: ...\n")
    other = type("Other", (), {"__module__": "__main__"})
    assert fingerprint_code([empty]) != fingerprint_code([other])
