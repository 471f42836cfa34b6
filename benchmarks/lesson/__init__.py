"""Lesson: three small domains in plain English for a pretrained model, learnt and forgotten within minutes."""

from __future__ import annotations

from benchmarks.lesson.benchmark import Lesson

__all__ = ["Lesson"]
