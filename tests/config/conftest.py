"""Fixtures for tests that import modules from a temporary folder."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def forget_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo after the test what it adds to `sys.path` and `sys.modules`."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
