"""Cipher language: one model knows the words, another the task, and a composition needs both."""

from __future__ import annotations

from benchmarks.cipher_language.benchmark import CipherLanguage
from benchmarks.cipher_language.pretrain import Pretrain

__all__ = ["CipherLanguage", "Pretrain"]
