"""Analyses of finished runs: relearning and knock-out."""

from __future__ import annotations

from workbench.analysis.knock_out import KnockOut
from workbench.analysis.relearning import Relearning
from workbench.analysis.runner import analyse

__all__ = ["KnockOut", "Relearning", "analyse"]
