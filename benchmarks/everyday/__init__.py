"""Probes for a model that was pretrained on real text: everyday questions, and the likelihood of plain English.

Questions and texts were written for this project. They measure what a model knew before, not what it is taught:
nothing is ever trained on them.
"""

from __future__ import annotations

from benchmarks.everyday.probes import Contains, questions, text

__all__ = ["Contains", "questions", "text"]
