"""Run folders to tables, figures, report.html, LaTeX and model cards. Imports no Lightning."""

from __future__ import annotations

from workbench.report.comparison import Comparison, compare
from workbench.report.model_card import export
from workbench.report.write import write_report

__all__ = ["Comparison", "compare", "export", "write_report"]
