"""Continued pretraining on a corpus before the first task: the stage after a surgery, or before instructions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from workbench.benchmark import PRETRAINING, Task
from workbench.strategy import ContinualStrategy

REMEDY = 'Give a .txt with a text a line, or a .jsonl of {"text"}.'


class ContinuedPretraining(ContinualStrategy):
    """Trains on plain text, with the language-model loss, before the first task.

    Alone it is fine-tuning after such a stage. In a list with a method that grows the model it is the stage after
    the surgery, and that method says what trains then: `BlockExpansion` its new blocks, `DepthUpScaling` all. The
    item is called "pretraining" and never scored itself, so that `per_task: {pretraining: ...}` in a config gives
    it a rate and a schedule of its own.

    Args:
        steps: Optimizer steps; the rows are gone through as often as that takes.
        corpus: A file of text: .txt, a text a line, or .jsonl of {"text"}. None: the benchmark's general corpus.
        packed: Whether texts stand one after the other in rows of `data.max_length` tokens, attention across them; else
            each has a row of its own, which suits a model that never met two texts in one row.

    Raises:
        ValueError: There is no corpus, or the file cannot be read.
    """

    reference = "Gururangan et al., 2020 (arXiv 2004.10964)"
    bibtex = """@misc{gururangan2020dont,
  author = {Gururangan, Suchin and others},
  title = {Don't Stop Pretraining: Adapt Language Models to Domains and Tasks},
  year = {2020},
  eprint = {2004.10964},
  archivePrefix = {arXiv}
}"""

    def __init__(self, steps: int, corpus: str | None = None, packed: bool = True) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps} is out of range; it has to be at least 1.")
        self.steps, self.packed = steps, packed
        self.corpus = None if corpus is None else read_corpus(Path(corpus))

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        """The corpus, and then the tasks.

        Raises:
            ValueError: There is no corpus, or another member of the list has put one in.
        """
        corpus = self.corpus or general
        if corpus is None or not len(corpus.train):
            raise ValueError("The benchmark has no general corpus to train on. Give corpus: a file of text.")
        if any(task.name == PRETRAINING for task in tasks):
            raise ValueError(f"There is an item {PRETRAINING!r} already: combine at most one ContinuedPretraining.")
        return [replace(corpus, name=PRETRAINING, max_steps=self.steps, packed=self.packed), *tasks]


def read_corpus(file: Path) -> Task:
    """A file of text as a task; its first row stands for the test that it never has.

    Raises:
        ValueError: The file is not there, or there is no text in it.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        texts = lines if file.suffix == ".txt" else [json.loads(line)["text"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"corpus: {file} cannot be read ({type(error).__name__}: {error}). {REMEDY}") from error
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"corpus: {file} holds no text. {REMEDY}")
    return Task(PRETRAINING, test=Dataset.from_dict({"text": texts[:1]}), train=Dataset.from_dict({"text": texts}))
