"""The model that knows the cipher language: the shipped `micro`, trained further on all of its words."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset

from benchmarks.cipher_language.cipher import Cipher
from workbench.backbone import Backbone
from workbench.benchmark import seeded_random

LEARNING_RATE = 3e-3
BATCH_ROWS = 64
WARMUP_STEPS = 50
RECIPE = "recipe.json"


class Watcher(Protocol):
    """Who is told how far the training is, as a study's display is."""

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        """A model begins: its name, which it is of how many, and what trains."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """So many steps are done, and the loss of the last, in nats a token."""


class Pretrain:
    """Makes `folder/m_a`, unless it is there: `micro` after training on glosses in every dialect.

    The folder appears whole or not at all.

    Args:
        folder: Where the model is kept. What was made with the same arguments is left as it is.
        seed: Of the cipher, as in `CipherLanguage`, and of the rows.
        steps: Optimizer steps.

    Raises:
        ValueError: `steps` is below 1; when called, the folder holds something else.
    """

    def __init__(self, folder: str | Path, seed: int = 0, steps: int = 500) -> None:
        if steps < 1:
            raise ValueError(f"steps={steps} is out of range. Choose 1 or more.")
        self.folder, self.seed, self.steps = Path(folder).expanduser(), seed, steps

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decides what is made."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "learning_rate": LEARNING_RATE,
            "batch_rows": BATCH_ROWS,
        }

    def __call__(self, display: Watcher | None = None) -> None:
        """Makes what is not there.

        Args:
            display: A study's, which is told of each step.

        Raises:
            ValueError: The folder was made with other arguments, or by something else.
        """
        if self.folder.exists():
            self._check()
            return
        partial = self.folder.with_name(self.folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        backbone = Backbone.load("micro")
        if display:
            millions = sum(weight.numel() for weight in backbone.model.parameters()) / 1e6
            display.item_begins("m_a", "model 1 of 1", f"{millions:.2f} M weights")
        self._train(backbone, display)
        backbone.save(partial / "m_a")
        (partial / RECIPE).write_text(json.dumps(self.recipe, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.folder)

    def _check(self) -> None:
        file = self.folder / RECIPE
        if not file.is_file():
            raise ValueError(f"{self.folder} holds no {RECIPE}, so it was not made here. Choose another `folder`.")
        try:
            made = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            made = f"no JSON: {error}"
        if made != self.recipe:
            raise ValueError(
                f"{self.folder} was made with other arguments ({made} there, {self.recipe} here). "
                "Choose another `folder`, or delete this one."
            )

    def _train(self, backbone: Backbone, display: Watcher | None) -> None:
        """AdamW on the answers of fresh rows: linear warm-up, then linearly down to nothing."""
        rng, cipher = seeded_random("cipher", self.seed, "pretraining"), Cipher(self.seed)
        made = [cipher.gloss(rng) for _ in range(self.steps * BATCH_ROWS)]
        rows = backbone.encode(Dataset.from_list([{"prompt": prompt, "answer": answer} for prompt, answer in made]))
        parameters = list(backbone.model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / WARMUP_STEPS, 1 - step / self.steps)
        )
        for step in range(self.steps):
            batch = backbone.collate([rows[step * BATCH_ROWS + index] for index in range(BATCH_ROWS)])
            loss = backbone(batch).token_nats.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            if display:
                display.steps(step + 1, self.steps, loss.item())
