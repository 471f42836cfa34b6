"""First lines of classes, read from the sources: of modules, of packages, and of a class in another file."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks
import strategies
from workbench.config.listing import first_lines


def test_a_package_is_read_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "methods"
    (folder / "inner").mkdir(parents=True)
    homes = {"Plain": "plain", "Inner": "inner", "Untold": "plain"}
    (folder / "__init__.py").write_text(f"raise RuntimeError\n__all__ = {list(homes)}\n_HOMES = {homes}\n")
    (folder / "plain.py").write_text('class Plain:\n    """One line.\n\n    More."""\nclass Untold: ...\n')
    (folder / "inner" / "__init__.py").write_text("from methods.inner.deep import Inner\n")
    (folder / "inner" / "deep.py").write_text('class Inner:\n    """From a package."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert first_lines("methods") == {"Plain": "One line.", "Inner": "From a package.", "Untold": ""}


@pytest.mark.parametrize("package", [strategies, benchmarks])
def test_the_shipped_classes_have_the_lines_of_their_docstrings(package: object) -> None:
    for name, line in first_lines(package.__name__).items():  # type: ignore[attr-defined]
        assert line == (getattr(package, name).__doc__ or "").strip().partition("\n")[0] != ""
