"""The model: load, encode, compute the loss, generate, adapters, soft prompts."""

from __future__ import annotations

from workbench.backbone.adapters import lora_settings, update_factors
from workbench.backbone.backbone import Backbone
from workbench.backbone.batch import Batch, Output
from workbench.backbone.prompts import Selector, SoftPrompt, soft_embedding
from workbench.backbone.weights import (
    SetAside,
    parameters_by_name,
    plain_parameters,
    plain_weights,
    slerp_shares,
    wide,
    write_weights,
)

__all__ = [
    "Backbone",
    "Batch",
    "Output",
    "Selector",
    "SetAside",
    "SoftPrompt",
    "lora_settings",
    "parameters_by_name",
    "plain_parameters",
    "plain_weights",
    "slerp_shares",
    "soft_embedding",
    "update_factors",
    "wide",
    "write_weights",
]
