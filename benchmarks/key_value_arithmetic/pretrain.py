"""Pretraining of the models to compose: m_A on SUBS, m_B on NUM, and two ablations of m_A."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from benchmarks.key_value_arithmetic.benchmark import KeyValueArithmetic
from benchmarks.key_value_arithmetic.expressions import Expressions, Make, Row
from benchmarks.key_value_arithmetic.learning import (
    BATCH_ROWS,
    LEARNING_RATE,
    SIZES,
    build_model,
    exact_match,
    train,
)
from benchmarks.key_value_arithmetic.tokens import build_tokenizer
from workbench.benchmark import seeded_random

STEPS = {"m_a": 700, "m_b": 1500}
RECIPE, SCORES = "recipe.json", "scores.json"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
ONE_KEY_SHARE = 0.5
"""Share of m_A's rows that are a single key."""


class ProgressDisplay(Protocol):
    """Progress display of a study, as far as it is used here."""

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        """Show the start of a model's training: its name, "model 1 of 4", and its number of weights."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """Show the number of finished steps and the last step's loss in nats per token."""


@dataclass(frozen=True)
class Part:
    """One of the models.

    Args:
        name: Name of its subfolder.
        rows: Kind of its training rows, "subs" or "num".
        steps: Number of optimizer steps.
    """

    name: str
    rows: str
    steps: int


class Pretrain:
    """Train the models that a seed's compositions join: `Pretrain(folder)()`.

    `folder` receives four models of the same size with one tokenizer, loadable with plain transformers, and
    `scores.json` with each model's exact match on the test rows:

    - `m_a`: trained on SUBS with all keys; half of its rows are a single key with its number;
    - `m_b`: trained on NUM, single numbers included;
    - `m_a_untrained`: trained on NUM without any key, for as many steps as `m_a`;
    - `m_a_random`: random weights.

    Existing models with the same arguments are reused. Training is deterministic on one machine: rows and weights are
    seeded, and one thread computes. The folder is written completely or not at all.

    Args:
        folder: Folder of the models.
        seed: Seed of the keys, as in `KeyValueArithmetic`, and of the weights.
        expressions: Arguments of `Expressions` other than the seed; the same as the benchmark's.
        steps: Numbers of optimizer steps of "m_a" and "m_b", where they differ from the defaults.

    Raises:
        ValueError: A number is out of range; when called, the folder has other contents, or there are too few keys
            for the test rows.
    """

    def __init__(
        self,
        folder: str | Path,
        seed: int = 0,
        expressions: Mapping[str, Any] | None = None,
        steps: Mapping[str, int] | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.expressions = Expressions(seed, **(expressions or {}))
        if unknown := sorted(set(steps or {}) - set(STEPS)):
            raise ValueError(f"steps names {unknown[0]!r}. Choose {' and '.join(map(repr, STEPS))}.")
        self.steps = {**STEPS, **(steps or {})}
        for name, count in self.steps.items():
            if count < 1:
                raise ValueError(f"steps.{name}={count} is out of range. Choose 1 or more.")
        self.parts = (
            Part("m_a", "subs", self.steps["m_a"]),
            Part("m_b", "num", self.steps["m_b"]),
            Part("m_a_untrained", "num", self.steps["m_a"]),
            Part("m_a_random", "num", 0),
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that determines the models, as recorded in recipe.json."""
        fixed = {"sizes": SIZES, "batch_rows": BATCH_ROWS, "learning_rate": LEARNING_RATE}
        recipe = {"expressions": asdict(self.expressions), "steps": self.steps, **fixed, "one_key_share": ONE_KEY_SHARE}
        loaded: dict[str, Any] = json.loads(json.dumps(recipe))  # as it is read from the file: lists, no tuples
        return loaded

    def __call__(self, display: ProgressDisplay | None = None) -> None:
        """Train and save the models, unless they exist.

        Args:
            display: Progress display that shows each step. None: a progress bar.

        Raises:
            ValueError: The folder was created with other arguments, or not by `Pretrain`.
        """
        if self._exists():
            return
        tests = self._tests()
        partial = self.folder.with_name(self.folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        scores = {}
        with _deterministic(), nullcontext(display) if display else _progress_bar() as shown:
            for number, part in enumerate(self.parts, 1):
                model, tokenizer = self._trained(part, number, shown)
                model.save_pretrained(partial / part.name)
                tokenizer.save_pretrained(partial / part.name)
                scores[part.name] = {name: exact_match(model, tokenizer, rows) for name, rows in tests.items()}
        for name, content in ((SCORES, scores), (RECIPE, self.recipe)):
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(partial, self.folder)

    def _exists(self) -> bool:
        """Return True if the folder is complete; raise an error if it has other contents."""
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return False
        file = self.folder / RECIPE
        if not file.is_file():
            raise ValueError(f"{self.folder} holds no {RECIPE}, so it was not made here. Choose another `folder`.")
        try:
            recorded = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            recorded = {}
        if recorded != self.recipe:
            recorded = recorded if isinstance(recorded, dict) else {}
            changed = [name for name in self.recipe if recorded.get(name) != self.recipe[name]]
            listed = "; ".join(f"{name}: {recorded.get(name)} there, {self.recipe[name]} here" for name in changed)
            raise ValueError(
                f"{self.folder} was made with other arguments ({listed}). Choose another `folder`, or delete this one."
            )
        wanted = [self.folder / part.name / name for part in self.parts for name in FILES]
        return all(path.is_file() for path in (*wanted, self.folder / SCORES))

    def _trained(
        self, part: Part, number: int, display: ProgressDisplay
    ) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
        """Return a trained model and its tokenizer; `number` is its position, counted from 1."""
        tokenizer = build_tokenizer(self.expressions)
        torch.manual_seed(seeded_random("key_value", self.expressions.seed, "weights", part.name).randrange(2**31))
        model = build_model(tokenizer)
        if part.steps:
            millions = sum(weight.numel() for weight in model.parameters()) / 1e6
            display.item_begins(part.name, f"model {number} of {len(self.parts)}", f"{millions:.2f} M weights")
            rng = seeded_random("key_value", self.expressions.seed, "pretraining", part.name)

            def observe(step: int, loss: float) -> None:
                display.steps(step, part.steps, loss)

            train(model, tokenizer, self._maker(part.rows), part.steps, rng, observe)
        return model, tokenizer

    def _maker(self, rows: str) -> Make:
        """Return the function that draws training rows of a kind."""
        source = self.expressions
        counts = (1, *source.operands)

        def subs(rng: random.Random) -> Row:
            return source.one_key(rng) if rng.random() < ONE_KEY_SHARE else source.subs(rng, source.words, counts)

        def num(rng: random.Random) -> Row:
            return source.num(rng, counts)

        return {"subs": subs, "num": num}[rows]

    def _tests(self) -> dict[str, list[Row]]:
        """Return the benchmark's test rows by task."""
        given = {name: value for name, value in asdict(self.expressions).items() if name != "seed"}
        benchmark = KeyValueArithmetic(self.expressions.seed, train_rows=1, expressions=given)
        tasks = [benchmark[0], *benchmark.probes]
        return {
            task.name: list(zip(task.test["prompt"][:], task.test["answer"][:], strict=True))
            for task in tasks
            if task.name != "math_seen"  # a model has seen either all keys or none
        }


class _Bar:
    """A progress bar for each model, for use without a study."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self.task = self.progress.add_task(f"{place}: {name}", total=None, loss=math.nan)

    def steps(self, done: int, total: int, loss: float) -> None:
        self.progress.update(self.task, completed=done, total=total, loss=loss)


@contextmanager
def _progress_bar() -> Iterator[ProgressDisplay]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn()) as progress:
        yield _Bar(progress)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Use one thread, a forked random state and no transformers progress bars; restore all three afterwards."""
    threads, bars = torch.get_num_threads(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        if bars:
            logging.enable_progress_bar()
