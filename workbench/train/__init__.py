"""Learn tasks in sequence: loop, LightningModule, data, callbacks, checkpoints, FSDP."""

from __future__ import annotations

from workbench.train.callbacks import ForgettingMonitor
from workbench.train.data import ContinualDataModule
from workbench.train.evaluation import score_task
from workbench.train.fsdp import Sharded
from workbench.train.loop import learn_in_sequence
from workbench.train.module import ContinualModule

__all__ = ["ContinualDataModule", "ContinualModule", "ForgettingMonitor", "Sharded", "learn_in_sequence", "score_task"]
