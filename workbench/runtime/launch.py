"""This process's rank as its launcher has set it; known before torch is imported."""

from __future__ import annotations

import os


def launched_rank() -> int:
    """Return the rank that the environment names; 0 where one process executes the study."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
