"""Grow, merge and fetch model folders."""

from __future__ import annotations

from workbench.surgery.fetching import fetch
from workbench.surgery.growing import grow, restack_folder
from workbench.surgery.merging import merge

__all__ = ["fetch", "grow", "merge", "restack_folder"]
