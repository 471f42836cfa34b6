"""CipherLanguage: questions in a cipher language as a benchmark of the workbench."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property, partial

from datasets import Dataset

from benchmarks.cipher_language.cipher import NAMES, NOUNS, Cipher, Make, Row, ask, seeded
from workbench.benchmark import Task, no_rows
from workbench.scorers import ExactMatch

PROBE_ROWS = 64
LONGEST = 8
TRIES = 20


class CipherLanguage:
    """Questions in a cipher language, tested in dialects that no training row is written in.

    In the spirit of CALM's language experiment (Bansal et al., 2024, arXiv 2401.02412, section 4.2): the shipped
    `mini` knows how to answer such questions, in English; the m_A of `Pretrain` knows the eight dialects and no task.
    The one task, "facts", has training rows in three dialects, validation rows in two others and test rows in the
    last three. Probes, each tested alone and never trained: the same questions with other rows in the training
    dialects ("seen"), single words of the test dialects ("words"), and, to see what is forgotten, skills of `mini`
    in English: "english", "letters", "flip", "sums".

    Args:
        seed: Which cipher, as in `Pretrain`, and which rows.
        train_rows: 1 to 8192.
        test_rows: Of the test split, and as many of the validation split; 1 to 2048.

    Raises:
        ValueError: A number of rows is out of range.
    """

    name = "cipher_language"

    def __init__(self, seed: int = 0, train_rows: int = 4096, test_rows: int = 256) -> None:
        for name, value, most in (("train_rows", train_rows, 8192), ("test_rows", test_rows, 2048)):
            if not 1 <= value <= most:
                raise ValueError(f"{name}={value} is out of range. Choose 1 to {most}.")
        self.cipher, self.train_rows, self.test_rows = Cipher(seed), train_rows, test_rows

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Task:
        return [self._facts][index]

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """There is one task."""
        return {"default": ("facts",)}

    @property
    def general(self) -> None:
        """There is no general text."""

    @cached_property
    def probes(self) -> Sequence[Task]:
        """The seen dialects, the words of the unseen ones, and what `mini` could do before."""
        made = self.cipher
        seen = partial(made.facts, part="train")
        words: Make = partial(made.word, part="test")
        trained = {row["prompt"] for row in self._facts.train}
        makers = {"words": words, "english": ask, "letters": letters, "flip": flip, "sums": sums}
        fresh = [row for row in self._rows("seen", seen, 2 * PROBE_ROWS + self.train_rows) if row[0] not in trained]
        return [
            self._task("seen", fresh[:PROBE_ROWS]),
            *(self._task(name, self._rows(name, make, PROBE_ROWS)) for name, make in makers.items()),
        ]

    @cached_property
    def _facts(self) -> Task:
        counts = {"test": self.test_rows, "validation": self.test_rows, "train": self.train_rows}
        rows = {part: self._rows(part, partial(self.cipher.facts, part=part), count) for part, count in counts.items()}
        return self._task("facts", **rows)

    def _rows(self, name: str, make: Make, count: int) -> list[Row]:
        rng, rows = seeded("cipher", self.cipher.seed, "rows", name), dict[str, str]()
        for _ in range(TRIES * count):
            prompt, answer = make(rng)
            rows.setdefault(prompt, answer)
            if len(rows) == count:
                break
        return list(rows.items())

    def _task(self, name: str, test: list[Row], validation: Sequence[Row] = (), train: Sequence[Row] = ()) -> Task:
        return Task(
            name=name,
            test=_dataset(test),
            validation=_dataset(validation),
            train=_dataset(train),
            scorers={"exact_match": ExactMatch()},
            max_new_tokens=LONGEST if name == "flip" else 3,
        )


def letters(rng: random.Random) -> Row:
    """Which of three options has a word."""
    chosen = rng.sample(NOUNS, 3)
    listed = " ".join(f"{letter}: {word}." for letter, word in zip("ABC", chosen, strict=True))
    right = rng.randrange(3)
    return f"{listed} Which letter has {chosen[right]}? Answer:", "ABC"[right]


def flip(rng: random.Random) -> Row:
    """A list from its end to its start."""
    chosen = rng.sample(NAMES, rng.randint(2, 4))
    return f"Flip: {', '.join(chosen)}. Answer:", ", ".join(chosen[::-1])


def sums(rng: random.Random) -> Row:
    """Two small numbers, and their sum."""
    first, second = rng.randint(0, 12), rng.randint(0, 9)
    return f"{first} + {second} = ? Answer:", str(first + second)


def _dataset(rows: Sequence[Row]) -> Dataset:
    if not rows:
        return no_rows()
    return Dataset.from_list([{"prompt": prompt, "answer": answer} for prompt, answer in rows])
