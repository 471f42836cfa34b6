"""Values of a YAML against annotations, one row for each rule."""

from __future__ import annotations

import re
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Protocol, TypeVar

import pytest

from workbench.config.type_check import Produced, accepts, check_type, choices, described


class Colour(Enum):
    RED = "red"


class Painter(Protocol):
    def paint(self) -> None: ...


ACCEPTED = [
    (3, Any),
    (None, None),
    (None, Optional[int]),  # noqa: UP045
    (3, int | None),
    (3, float),
    (True, bool),
    ("a", str),
    ("none", Literal["none", "chat"]),
    (1, Literal[1, 2]),
    ([1, 2], list[int]),
    ([1, 2.5], tuple[float, float]),
    ([1, 2, 3], tuple[int, ...]),
    ([], tuple),
    (["q", "v"], Sequence[str]),
    (["q", "v"], typing.Iterable[str]),
    (range(3), Iterable[int]),
    ({"a": 1}, dict[str, int]),
    ({"a": [1]}, Mapping[str, list[int]]),
    ("runs", Path),
    ("runs", str | Path | None),
    ("red", Colour),
    (3, Annotated[int, "tokens"]),
    (3, TypeVar("T")),
    (3, "Unresolved"),
    ("3", int | Painter),
    ([1], set[int]),
    (3, Painter),
    (3, type[int]),
    (len, Callable[[str], int]),
    (Produced(OrderedDict), dict),
    (Produced(OrderedDict), str | dict[str, int]),
    (Produced(OrderedDict), Callable[[], None]),
    (Produced(OrderedDict), Painter),
    (Produced(len), dict),
    (Produced(None), int),
    ([Produced(OrderedDict)], list[dict[str, int]]),
]

REFUSED = [
    (None, int),
    (True, int),
    (True, float),
    (1, bool),
    (1.0, int),
    ("1", float),
    (1, str),
    ("full", Literal["none", "chat"]),
    (True, Literal[1, 2]),
    ("q_proj", Sequence[str]),
    ("q_proj", Iterable[str]),
    ("q_proj", list),
    ({"a": 1}, list[str]),
    ([1, "2"], list[int]),
    ([1, 2, 3], tuple[int, int]),
    ({"a": "1"}, dict[str, int]),
    ([], dict),
    (3, Path),
    ("blue", Colour),
    ("a", Annotated[int, "tokens"]),
    (3, Callable[[], None]),
    (3, Callable),
    ("a", OrderedDict),
    ({"days": 1}, timedelta),
    ("P1D", timedelta),
    ("a.*", re.Pattern),
    ("a", bytes),
    ({1: 2}, dict[str, int]),
    ({"a": 1}, Iterable[str]),
    (3, list[Painter]),
    (1, Literal[Colour.RED]),
    (Produced(OrderedDict), list[int]),
    (Produced(OrderedDict), str | None),
    ([Produced(int)], list[str]),
]


@pytest.mark.parametrize(("value", "annotation"), ACCEPTED)
def test_a_value_that_fits_is_accepted(value: object, annotation: object) -> None:
    assert accepts(value, annotation) is True


@pytest.mark.parametrize(("value", "annotation"), REFUSED)
def test_a_value_that_does_not_fit_is_refused(value: object, annotation: object) -> None:
    assert accepts(value, annotation) is False


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (int | None, "int or None"),
        (Literal["left", "middle"], "'left' or 'middle'"),
        (dict[str, list[int]] | Path, "dict[str, list[int]] or Path"),
        (tuple[float, ...], "tuple[float, ...]"),
        (Callable[[int], int], "a callable"),
        (Any, "Any"),
    ],
)
def test_an_annotation_in_words(annotation: object, words: str) -> None:
    assert described(annotation) == words


def test_choices_are_found_inside_unions() -> None:
    assert choices(Literal["a", 1] | list[Literal["b"]] | None) == ["a", "b"]


def test_the_message_of_a_mismatch() -> None:
    assert check_type(3, int | None, "data.max_length") == []
    assert check_type("cat", Literal["none", "chat"], "data.template") == [
        "data.template: expected 'none' or 'chat', got 'cat' (str). Did you mean 'chat'?"
    ]
