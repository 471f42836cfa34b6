"""Grow and merge model folders from disk to disk."""

from __future__ import annotations

from workbench.surgery.growing import grow, restack_folder
from workbench.surgery.merging import merge

__all__ = ["grow", "merge", "restack_folder"]
