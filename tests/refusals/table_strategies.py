"""Arguments of the shipped strategies that cannot be, and models and tasks that they cannot work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bad_inputs import Place, Row

import strategies
from strategies import (
    CALM,
    BlockExpansion,
    ContinuedPretraining,
)
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone


def row(make: Callable[..., ContinualStrategy], says: str, *more: str, **arguments: Any) -> Row:
    """A strategy that cannot be built."""
    return Row(f"{make.__name__} {arguments}", (says, *more), lambda _: make(**arguments))


def setup(strategy: Callable[[], ContinualStrategy], says: str, *more: str, **changes: Any) -> Row:
    """A strategy that does not fit the tiny model."""
    return Row(says, (says, *more), lambda _: strategy().setup(tiny_backbone(**changes)))


def corpus(name: str, content: bytes | None, *says: str) -> Row:
    """A corpus that cannot be read."""

    def lay(place: Place) -> None:
        if content is not None:
            (place.folder / name).write_bytes(content)

    return Row(f"corpus {name}", (name, *says), lambda _: ContinuedPretraining(1, name), lay=lay)


BLOCKS = [
    row(BlockExpansion, "each_task freezes", "trains='all'", "Choose one.", each_task=True, trains="all"),
]
COMPOSED = [
    setup(lambda: CALM("nowhere", 2), "nowhere: there is no such folder. Give"),
]
TEXTS = [
    corpus("bytes.txt", b"\xff\xfe", "cannot be read (UnicodeDecodeError", "Give a .txt"),
    corpus("empty.txt", b" \n", "holds no text. Give a .txt"),
    corpus("words.jsonl", b'{"words": "a"}', "cannot be read (KeyError", "Give a .txt"),
    corpus("list.jsonl", b"[1]", "cannot be read (TypeError", "Give a .txt"),
    corpus("deep.jsonl", b"[" * 100_000, "cannot be read (RecursionError", "Give a .txt"),
    corpus("number.jsonl", b'{"text": 1}', "holds no text. Give a .txt"),
]
ROWS = [
    *BLOCKS,
    *COMPOSED,
    *TEXTS,
    Row(
        "a strategy's name",
        ("module 'strategies' has no attribute 'Nope'. Choose",),
        lambda _: strategies.Nope,
        error=AttributeError,
    ),
]
