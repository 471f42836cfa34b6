"""The model: load, encode, compute the loss, generate, adapters."""

from __future__ import annotations

from workbench.backbone.backbone import Backbone
from workbench.backbone.batch import Batch, Output

__all__ = ["Backbone", "Batch", "Output"]
