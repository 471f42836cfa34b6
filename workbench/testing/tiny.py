"""A tiny model, tiny tasks and a run over them, for fast tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.benchmark import Task
from workbench.model_folder import SHIPPED
from workbench.results import RunFolder
from workbench.runtime.seeding import preserved_random_state, seed_all
from workbench.scorers import ExactMatch
from workbench.strategy import ContinualStrategy
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence
from workbench.train.checkpoint import Intervals

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
"""Config of the tiny model."""
VARIANTS: Mapping[str, dict[str, Any]] = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "bf16": {"dtype": torch.bfloat16},
    "head_dim": {"head_dim": 16},  # width / heads is 8
    "layer_types": {
        "family": "qwen3",
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "use_sliding_window": True,
        "sliding_window": 6,  # tokens, less than half of a tiny prompt
    },
}
"""Arguments of `tiny_backbone` for kinds of models that strategies should support."""


def tiny_backbone(family: str = "llama", *, seed: int = 0, text: TextPolicy | None = None, **changes: Any) -> Backbone:
    """Return a random model with about 100 thousand weights and the shipped tokenizer.

    Args:
        family: "llama", "mistral", "qwen2" or "qwen3".
        seed: Seed of the weights.
        text: Length limits, truncation and template; None: the defaults.
        changes: Changes of the model's config, such as num_hidden_layers=8; see `VARIANTS` for examples:
            `tiny_backbone(**VARIANTS["tied"])`.
    """
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["mini"])
    size = len(tokenizer)

    def build() -> PreTrainedModel:
        with preserved_random_state():
            seed_all("tiny", seed)
            ends = {
                "eos_token_id": tokenizer.eos_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "pad_token_id": None,
            }
            config = AutoConfig.for_model(family, **{"vocab_size": size, **TINY, **ends, **changes})
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
            for name, parameter in model.named_parameters():  # biases are initialized to zero, which would hide errors
                if name.endswith("bias"):
                    nn.init.normal_(parameter, std=0.2)
            return model

    return Backbone(build, tokenizer, text=text)


def tiny_tasks(count: int = 2, rows: int = 12) -> list[Task]:
    """Return small copying tasks, each with its own instruction.

    Args:
        count: Number of tasks.
        rows: Number of training rows, and of test rows, of each task.
    """

    def build(index: int, split: str) -> Dataset:
        words = [f"{split}{number} {'abcdefgh'[(index + number) % 8]}" for number in range(rows)]
        return Dataset.from_list([{"prompt": f"Task {index}: {word}\nAnswer:", "answer": word[-1]} for word in words])

    return [
        Task(
            f"task_{index}",
            test=build(index, "s"),
            train=build(index, "t"),
            scorers={"accuracy": ExactMatch()},
            max_new_tokens=3,
        )
        for index in range(count)
    ]


def tiny_corpus(rows: int = 4) -> Task:
    """Return a small general corpus, for methods that pretrain.

    Args:
        rows: Number of training rows, and of test rows; at most 8.
    """
    texts = {split: [f"{split} {word} runs" for word in "abcdefgh"[:rows]] for split in ("once a", "then a")}
    train, test = (Dataset.from_dict({"text": lines}) for lines in texts.values())
    return Task("prose", train=train, test=test)


class Stopped(Exception):
    """A run was stopped by `StopsAfter`."""


class StopsAfter(Callback):
    """Callback that stops a run at the start of a batch.

    Args:
        batches: Number of batches before the stop; None: the run is not stopped.
    """

    def __init__(self, batches: int | None) -> None:
        self.left = batches

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the batch.

        Raises:
            Stopped: The given number of batches has been trained.
        """
        if self.left == 0:
            raise Stopped
        self.left = None if self.left is None else self.left - 1


def tiny_run(
    strategy: ContinualStrategy,
    folder: Path,
    *,
    backbone: Backbone | None = None,
    general: Task | None = None,
    seed: int = 0,
    stop_after: int | None = None,
) -> Backbone:
    """Learn two tiny tasks in sequence, three optimizer steps each, and return the model.

    Args:
        strategy: The strategy.
        folder: Folder of the run; an unfinished run in it is resumed.
        backbone: Model to train; None: a new tiny one.
        general: General corpus, for methods that need one.
        seed: Seed of the run.
        stop_after: Number of batches after which the run is stopped; None: it is not stopped.

    Raises:
        Stopped: The run was stopped after `stop_after` batches.
    """
    backbone = backbone or tiny_backbone()
    module = ContinualModule(
        backbone, strategy, lambda _, parameters, __: (torch.optim.AdamW(parameters, lr=1e-2), None)
    )

    stops = StopsAfter(stop_after)

    def make_trainer(_: Task, callbacks: list[Callback]) -> Trainer:
        return Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[*callbacks, stops],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )

    data = ContinualDataModule(tiny_tasks(), general=general, batch_size=4, seed=seed)
    intervals = Intervals(save_every_n_steps=1 if stop_after else None)
    learn_in_sequence(module, data, make_trainer, RunFolder(folder), intervals=intervals)
    return backbone
