"""The recipe of the models that are composed: a small m_A on SUBS, a small m_B on NUM, and m_A's ablations."""

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


class Watcher(Protocol):
    """Who is told how far the training is, as a study's display is."""

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        """A model begins: its name, which it is of how many, and what trains."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """So many steps are done, and the loss of the last, in nats a token."""


@dataclass(frozen=True)
class Part:
    """One of the models: its folder, the kind of row that it learns, and for how many steps."""

    name: str
    learns: str
    steps: int


class Pretrain:
    """Makes the models that a seed's compositions are made of, unless they are there: `Pretrain(folder)()`.

    `folder` then holds four models of one size with one tokenizer, as plain transformers loads them, and what each
    answers exactly with test keys, in `scores.json`:

    - `m_a` learns all of SUBS; half of its rows are a single key and its number;
    - `m_b` learns NUM, one number alone among it;
    - `m_a_untrained` is a general model that never met a key: it learns NUM for as long as m_a learns SUBS;
    - `m_a_random` has random weights.

    The rows follow from the seed, and one thread adds in one order: the same machine makes the same bytes. The folder
    appears whole or not at all.

    Args:
        folder: Where the models are kept. What was made with the same arguments is left as it is.
        seed: Of the keys, as in `KeyValueArithmetic`, and of the weights.
        expressions: Arguments of `Expressions`, its seed aside; those of the benchmark.
        steps: Optimizer steps of "m_a" and of "m_b"; those not given are the defaults.

    Raises:
        ValueError: A number is out of range; when called, the folder holds something else, or there are too few keys
            for the tests.
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
        """All that decides what is made."""
        fixed = {"sizes": SIZES, "batch_rows": BATCH_ROWS, "learning_rate": LEARNING_RATE}
        recipe = {"expressions": asdict(self.expressions), "steps": self.steps, **fixed, "one_key_share": ONE_KEY_SHARE}
        loaded: dict[str, Any] = json.loads(json.dumps(recipe))  # as it is read back: no tuples
        return loaded

    def __call__(self, display: Watcher | None = None) -> None:
        """Makes what is not there.

        Args:
            display: A study's, which is told of each step. None: a bar of its own.

        Raises:
            ValueError: The folder was made with other arguments, or by something else.
        """
        if self._is_made():
            return
        tests = self._tests()
        partial = self.folder.with_name(self.folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        scores = {}
        with _quiet_and_in_order(), nullcontext(display) if display else _bar() as watcher:
            for number, part in enumerate(self.parts, 1):
                model, tokenizer = self._learnt(part, number, watcher)
                model.save_pretrained(partial / part.name)
                tokenizer.save_pretrained(partial / part.name)
                scores[part.name] = {name: exact_match(model, tokenizer, rows) for name, rows in tests.items()}
        for name, content in ((SCORES, scores), (RECIPE, self.recipe)):
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(partial, self.folder)

    def _is_made(self) -> bool:
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return False
        file = self.folder / RECIPE
        if not file.is_file():
            raise ValueError(f"{self.folder} holds no {RECIPE}, so it was not made here. Choose another `folder`.")
        try:
            made = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            made = {}
        if made != self.recipe:
            made = made if isinstance(made, dict) else {}
            apart = [name for name in self.recipe if made.get(name) != self.recipe[name]]
            told = "; ".join(f"{name}: {made.get(name)} there, {self.recipe[name]} here" for name in apart)
            raise ValueError(
                f"{self.folder} was made with other arguments ({told}). Choose another `folder`, or delete this one."
            )
        wanted = [self.folder / part.name / name for part in self.parts for name in FILES]
        return all(path.is_file() for path in (*wanted, self.folder / SCORES))

    def _learnt(self, part: Part, number: int, watcher: Watcher) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
        tokenizer = build_tokenizer(self.expressions)
        torch.manual_seed(seeded_random("key_value", self.expressions.seed, "weights", part.name).randrange(2**31))
        model = build_model(tokenizer)
        if part.steps:
            millions = sum(weight.numel() for weight in model.parameters()) / 1e6
            watcher.item_begins(part.name, f"model {number} of {len(self.parts)}", f"{millions:.2f} M weights")
            rng = seeded_random("key_value", self.expressions.seed, "pretraining", part.name)

            def observe(step: int, loss: float) -> None:
                watcher.steps(step, part.steps, loss)

            train(model, tokenizer, self._maker(part.learns), part.steps, rng, observe)
        return model, tokenizer

    def _maker(self, learns: str) -> Make:
        made = self.expressions
        counts = (1, *made.operands)

        def subs(rng: random.Random) -> Row:
            return made.one_key(rng) if rng.random() < ONE_KEY_SHARE else made.subs(rng, made.words, counts)

        def num(rng: random.Random) -> Row:
            return made.num(rng, counts)

        return {"subs": subs, "num": num}[learns]

    def _tests(self) -> dict[str, list[Row]]:
        given = {name: value for name, value in asdict(self.expressions).items() if name != "seed"}
        benchmark = KeyValueArithmetic(self.expressions.seed, train_rows=1, expressions=given)
        tasks = [benchmark[0], *benchmark.probes]
        return {
            task.name: list(zip(task.test["prompt"][:], task.test["answer"][:], strict=True))
            for task in tasks
            if task.name != "math_seen"  # the models have seen all keys or none
        }


class _Bar:
    """A bar for each model, where no study shows one."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self.task = self.progress.add_task(f"{place}: {name}", total=None, loss=math.nan)

    def steps(self, done: int, total: int, loss: float) -> None:
        self.progress.update(self.task, completed=done, total=total, loss=loss)


@contextmanager
def _bar() -> Iterator[Watcher]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn()) as progress:
        yield _Bar(progress)


@contextmanager
def _quiet_and_in_order() -> Iterator[None]:
    """One thread and random states of its own; the process keeps what it had."""
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
