"""The folder of a run: journal, tables, protocol, scores."""

from __future__ import annotations

from workbench.results.protocol import Layout, Protocol
from workbench.results.run_folder import RunFolder
from workbench.results.score import TaskScore

__all__ = ["Layout", "Protocol", "RunFolder", "TaskScore"]
