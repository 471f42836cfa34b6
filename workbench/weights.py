"""A model as it is read, whole or not at all, and what its blocks keep while it is trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def load_weights(source: str | Path, dtype: torch.dtype, checkpointed: bool = False) -> PreTrainedModel:
    """The model of a folder or a hub id: from safetensors, without remote code, and with every weight there.

    Args:
        source: The folder or the id.
        dtype: Of the weights.
        checkpointed: Whether its blocks keep their input alone (`checkpoint_blocks`).

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
    return checkpoint_blocks(model) if checkpointed else cast(PreTrainedModel, model)


def blocks(model: nn.Module) -> list[Any]:
    """The transformer blocks of a model, of all that it is composed of, wherever they came from."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_blocks(model: PreTrainedModel) -> PreTrainedModel:
    """Has each block keep its input alone in training, and compute the rest again for the gradients; copies do too."""
    for block in blocks(model):
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return model


def is_checkpointed(model: nn.Module) -> bool:
    """Whether a block keeps its input alone; none does in evaluation mode, as a composition's after a forward."""
    return any(block.gradient_checkpointing and block.training for block in blocks(model))
