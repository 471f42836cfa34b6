"""Continual-learning methods: one file per method, with its reference."""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "BlockExpansion": "block_expansion",
    "CALM": "calm",
    "ContinuedPretraining": "continued_pretraining",
    "DepthUpScaling": "depth_up_scaling",
    "DownProjectionMoE": "down_projection_moe",
    "Joint": "joint",
    "LoRA": "lora",
    "PerTaskFT": "per_task_ft",
    "Replay": "replay",
    "SeqFT": "seqft",
}
__all__ = [
    "CALM",
    "BlockExpansion",
    "ContinuedPretraining",
    "DepthUpScaling",
    "DownProjectionMoE",
    "Joint",
    "LoRA",
    "PerTaskFT",
    "Replay",
    "SeqFT",
]


def __getattr__(name: str) -> object:
    """Import a strategy on first access, so that listing them imports none."""
    if name not in _HOMES:
        raise AttributeError(f"module 'strategies' has no attribute {name!r}. Choose from {', '.join(__all__)}.")
    return getattr(import_module(f"strategies.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
