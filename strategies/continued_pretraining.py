"""Continued pretraining on a corpus before the first task."""

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
    """Train on plain text before the first task   (Gururangan et al., 2020).

        L = -1/n Σ_t log p(x_t | x_<t)   over the n predicted tokens of a step

    Used alone, all weights are then fine-tuned on the tasks. Combined with a method that grows the model, it is the
    recovery stage after the surgery, and that method determines what is trained: `BlockExpansion` its new blocks,
    `DepthUpScaling` all layers. The curriculum item is named "pretraining" and is not scored;
    `per_task: {pretraining: ...}` in a config sets its learning rate and schedule.

    Args:
        steps: Number of optimizer steps; the corpus is repeated as often as needed.
        corpus: A text file: .txt with one text per line, or .jsonl of {"text"}. None: the benchmark's general corpus.
        packed: Concatenate texts into rows of `data.max_length` tokens, with attention across texts. False: one text
            per row, for a model that was pretrained this way.

    Raises:
        ValueError: `steps` is below 1, there is no corpus, or the file cannot be read.
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
        """Return the corpus followed by the tasks.

        Raises:
            ValueError: There is no corpus, or another member of the list has already inserted one.
        """
        corpus = self.corpus or general
        if corpus is None or not len(corpus.train):
            raise ValueError("The benchmark has no general corpus to train on. Give corpus: a file of text.")
        if any(task.name == PRETRAINING for task in tasks):
            raise ValueError(f"There is an item {PRETRAINING!r} already: combine at most one ContinuedPretraining.")
        return [replace(corpus, name=PRETRAINING, max_steps=self.steps, packed=self.packed), *tasks]


def read_corpus(file: Path) -> Task:
    """Read a text file as a task; its first row serves as the test split, which is never scored.

    Args:
        file: A .txt with one text per line, or a .jsonl of {"text"}.

    Raises:
        ValueError: The file cannot be read, or contains no text.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        texts = lines if file.suffix == ".txt" else [json.loads(line)["text"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"corpus: {file} cannot be read ({type(error).__name__}: {error}). {REMEDY}") from error
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"corpus: {file} holds no text. {REMEDY}")
    return Task(PRETRAINING, test=Dataset.from_dict({"text": texts[:1]}), train=Dataset.from_dict({"text": texts}))
