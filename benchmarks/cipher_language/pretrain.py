"""Pretraining of the model that knows the cipher language: the shipped `micro`, trained on all dialects."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.cipher_language.cipher import Cipher
from workbench.backbone import Backbone
from workbench.benchmark import dataset_of_pairs, seeded_random

LEARNING_RATE = 3e-3
BATCH_ROWS = 64
WARMUP_STEPS = 50
RECIPE = "recipe.json"


class ProgressDisplay(Protocol):
    """Progress display of a study, as far as it is used here."""

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        """Show the start of a model's training: its name, "model 1 of 2", and its number of weights."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """Show the number of finished steps and the last step's loss in nats per token."""


class Pretrain:
    """Train `micro` on glosses in every dialect and save it as `folder/m_a`: `Pretrain(folder)()`.

    An existing model with the same arguments is reused. The folder is written completely or not at all.

    Args:
        folder: Folder of the model.
        seed: Seed of the cipher, as in `CipherLanguage`, and of the rows.
        steps: Number of optimizer steps.

    Raises:
        ValueError: `steps` is below 1; when called, the folder has other contents.
    """

    def __init__(self, folder: str | Path, seed: int = 0, steps: int = 500) -> None:
        if steps < 1:
            raise ValueError(f"steps={steps} is out of range. Choose 1 or more.")
        self.folder, self.seed, self.steps = Path(folder).expanduser(), seed, steps

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that determines the model, as recorded in recipe.json."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "learning_rate": LEARNING_RATE,
            "batch_rows": BATCH_ROWS,
        }

    def __call__(self, display: ProgressDisplay | None = None) -> None:
        """Train and save the model, unless it exists.

        Args:
            display: Progress display that shows each step, or None.

        Raises:
            ValueError: The folder was created with other arguments, or not by `Pretrain`.
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
        """Raise an error unless the folder was created with the same arguments."""
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

    def _train(self, backbone: Backbone, display: ProgressDisplay | None) -> None:
        """Train with AdamW on the answers of new rows; linear warm-up, then linear decay to zero."""
        rng, cipher = seeded_random("cipher", self.seed, "pretraining"), Cipher(self.seed)
        rows = backbone.encode(dataset_of_pairs(cipher.gloss(rng) for _ in range(self.steps * BATCH_ROWS)))
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
