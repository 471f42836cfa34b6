"""Continual-learning methods: one file per method, with its reference."""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "Adapter": "adapter",
    "BlockExpansion": "block_expansion",
    "CALM": "calm",
    "ContinuedPretraining": "continued_pretraining",
    "DepthUpScaling": "depth_up_scaling",
    "DownProjectionMoE": "down_projection_moe",
    "EMA": "ema",
    "Joint": "joint",
    "L2P": "l2p",
    "LoRA": "lora",
    "Merge": "merge",
    "OLoRA": "olora",
    "PerTaskFT": "per_task_ft",
    "PullBack": "rewind",
    "ProgressivePrompts": "progressive_prompts",
    "Replay": "replay",
    "Rewind": "rewind",
    "SeqFT": "seqft",
}
__all__ = [
    "CALM",
    "EMA",
    "L2P",
    "Adapter",
    "BlockExpansion",
    "ContinuedPretraining",
    "DepthUpScaling",
    "DownProjectionMoE",
    "Joint",
    "LoRA",
    "Merge",
    "OLoRA",
    "PerTaskFT",
    "ProgressivePrompts",
    "PullBack",
    "Replay",
    "Rewind",
    "SeqFT",
]


def __getattr__(name: str) -> object:
    """Import a strategy on first access, so that listing them imports none."""
    if name not in _HOMES:
        raise AttributeError(f"module 'strategies' has no attribute {name!r}. Choose from {', '.join(__all__)}.")
    return getattr(import_module(f"strategies.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
