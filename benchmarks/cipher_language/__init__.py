"""A cipher language in dialects: one model knows its words, another the task, a composition needs both."""

from __future__ import annotations

from benchmarks.cipher_language.benchmark import CipherLanguage
from benchmarks.cipher_language.pretrain import Pretrain

__all__ = ["CipherLanguage", "Pretrain"]
