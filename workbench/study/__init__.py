"""A study: strategies x orders x seeds, dry run, resume."""

from __future__ import annotations

from workbench.study.study import Study

__all__ = ["Study"]
