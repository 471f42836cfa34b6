"""A model's weights, read whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_weights(source: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder or a hub id: from safetensors, without remote code, and with every weight there.

    Raises:
        ValueError: A weight is missing or of another shape.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are named below
    )
    if missing := sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"]):
        raise ValueError(
            f"{len(missing)} weights are missing or of another shape, the first: {missing[0]}. Copy them again."
        )
    return cast(PreTrainedModel, model)
