"""The benchmark CipherLanguage: questions in a cipher language."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property, partial

from benchmarks.cipher_language.cipher import NAMES, NOUNS, Cipher, Make, Row, ask
from workbench.benchmark import LazyBenchmark, Task, dataset_of_pairs, seeded_random
from workbench.scorers import ExactMatch

PROBE_ROWS = 64
LONGEST = 8
TRIES = 20
"""Draws for each requested row before the search for further prompts stops."""


class CipherLanguage(LazyBenchmark):
    """Questions in a cipher language; the test dialects do not occur in training.

    Modelled on CALM's language experiment (Bansal et al., 2024, arXiv 2401.02412, section 4.2): the shipped `mini`
    can answer such questions in English; the m_A of `Pretrain` knows the words of all eight dialects and no task. The
    one task, "facts", has training rows in three dialects, validation rows in two others and test rows in the
    remaining three. The probes are new questions in the training dialects ("seen"), single words of the test
    dialects ("words") and, to measure forgetting, English skills of `mini`: "english", "letters", "flip", "sums".

    Args:
        seed: Seed of the cipher, as in `Pretrain`, and of the rows.
        train_rows: Number of training rows, 1 to 8192.
        test_rows: Number of test rows and of validation rows, 1 to 2048.

    Raises:
        ValueError: A number of rows is out of range.
    """

    name = "cipher_language"
    task_names = ("facts",)

    def __init__(self, seed: int = 0, train_rows: int = 4096, test_rows: int = 256) -> None:
        for name, value, most in (("train_rows", train_rows, 8192), ("test_rows", test_rows, 2048)):
            if not 1 <= value <= most:
                raise ValueError(f"{name}={value} is out of range. Choose 1 to {most}.")
        self.cipher, self.train_rows, self.test_rows = Cipher(seed), train_rows, test_rows

    def build_task(self, name: str) -> Task:
        """Build the task, "facts".

        Args:
            name: "facts".
        """
        counts = {"test": self.test_rows, "validation": self.test_rows, "train": self.train_rows}
        rows = {part: self._rows(part, partial(self.cipher.facts, part=part), count) for part, count in counts.items()}
        return self._task(name, **rows)

    @cached_property
    def probes(self) -> Sequence[Task]:
        """New questions in the training dialects, words of the test dialects, and English skills of `mini`."""
        seen = partial(self.cipher.facts, part="train")
        words: Make = partial(self.cipher.word, part="test")
        trained = {row["prompt"] for row in self[0].train}
        makers = {"words": words, "english": ask, "letters": letters, "flip": flip, "sums": sums}
        fresh = [row for row in self._rows("seen", seen, 2 * PROBE_ROWS + self.train_rows) if row[0] not in trained]
        return [
            self._task("seen", fresh[:PROBE_ROWS]),
            *(self._task(name, self._rows(name, make, PROBE_ROWS)) for name, make in makers.items()),
        ]

    def _rows(self, name: str, make: Make, count: int) -> list[Row]:
        rng, rows = seeded_random("cipher", self.cipher.seed, "rows", name), dict[str, str]()
        for _ in range(TRIES * count):
            prompt, answer = make(rng)
            rows.setdefault(prompt, answer)
            if len(rows) == count:
                break
        return list(rows.items())

    def _task(self, name: str, test: list[Row], validation: Sequence[Row] = (), train: Sequence[Row] = ()) -> Task:
        return Task(
            name=name,
            test=dataset_of_pairs(test),
            validation=dataset_of_pairs(validation),
            train=dataset_of_pairs(train),
            scorers={"exact_match": ExactMatch()},
            max_new_tokens=LONGEST if name == "flip" else 3,
        )


def letters(rng: random.Random) -> Row:
    """Return a question for the letter of a word among three options."""
    chosen = rng.sample(NOUNS, 3)
    listed = " ".join(f"{letter}: {word}." for letter, word in zip("ABC", chosen, strict=True))
    right = rng.randrange(3)
    return f"{listed} Which letter has {chosen[right]}? Answer:", "ABC"[right]


def flip(rng: random.Random) -> Row:
    """Return a request to reverse a list of two to four names."""
    chosen = rng.sample(NAMES, rng.randint(2, 4))
    return f"Flip: {', '.join(chosen)}. Answer:", ", ".join(chosen[::-1])


def sums(rng: random.Random) -> Row:
    """Return the sum of two small numbers."""
    first, second = rng.randint(0, 12), rng.randint(0, 9)
    return f"{first} + {second} = ? Answer:", str(first + second)
