"""Values against annotations: whether what a YAML holds is what a signature asks for.

The check is generous where it cannot know, since a false alarm would keep somebody from a correct run: an
annotation that is not understood accepts anything.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from os import PathLike
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union

UNIONS = (Union, types.UnionType)


@dataclass(frozen=True)
class Produced:
    """A value that is not there yet: what a call of `maker` will return.

    Args:
        maker: A class, or a function (whose result is not known), or None where it could not be found.
    """

    maker: Callable[..., Any] | None


def accepts(value: object, annotation: Any) -> bool:
    """Tell whether an annotation allows a value, read as a YAML means it.

    So an int is a float, a list is a tuple, a text is a `Path` or an `Enum`'s value; but a bool is no int,
    and a text is no sequence of texts.

    >>> accepts([0.9, 1], tuple[float, float]), accepts("many", int | None), accepts(True, int)
    (True, False, False)
    """
    origin = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation)
    if annotation in (Any, object, inspect.Parameter.empty):
        return True
    if origin in UNIONS:
        return any(accepts(value, option) for option in arguments)
    if origin is Annotated:
        return accepts(value, arguments[0])
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if annotation is None:
        return value is None
    if origin is type or not isinstance(origin, type):
        return True
    if isinstance(value, Produced):
        return _promises(value, origin)
    return _accepts_many(value, origin, arguments) if issubclass(origin, Iterable) else _is_a(value, origin)


def described(annotation: Any) -> str:
    """Write an annotation as one would say it.

    >>> described(int | None), described(Literal["none", "chat"])
    ('int or None', "'none' or 'chat'")
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (None, type(None)):
        return "None"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in UNIONS:
        return " or ".join(dict.fromkeys(map(described, arguments)))
    if origin in (Callable, typing.Callable):
        return "a callable"
    if origin is None:
        return str(getattr(annotation, "__name__", annotation))
    inside = ", ".join("..." if argument is ... else described(argument) for argument in arguments)
    return f"{getattr(origin, '__name__', origin)}[{inside}]"


def choices(annotation: Any) -> list[str]:
    """List the texts that an annotation names one by one, however deep they stand in unions.

    >>> choices(Literal["none", "chat"] | None)
    ['none', 'chat']
    """
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return [option for option in arguments if isinstance(option, str)]
    return [text for argument in arguments for text in choices(argument)]


def _promises(value: Produced, wanted: Any) -> bool:
    """Tell whether a component may make what is wanted; only a class says what it makes."""
    if not isinstance(value.maker, type) or wanted is Callable:
        return True
    try:
        return issubclass(value.maker, wanted)
    except TypeError:  # a protocol that cannot be asked
        return True


def _accepts_many(value: object, origin: type, arguments: tuple[Any, ...]) -> bool:
    """Check a collection and what is in it; text and `Path` fall through, as they are one thing."""
    if issubclass(origin, str | bytes | Enum):
        return _is_a(value, origin)
    if issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return False
        key, item = arguments if len(arguments) == 2 else (Any, Any)
        return all(accepts(k, key) and accepts(v, item) for k, v in value.items())
    if not isinstance(value, list | tuple | AbstractSet) and isinstance(value, origin):
        return not isinstance(value, str | bytes | Mapping)
    if not isinstance(value, list | tuple | AbstractSet) or not _from_list(origin):
        return False
    if issubclass(origin, tuple) and arguments and arguments[-1] is not ...:
        return len(value) == len(arguments) and all(map(accepts, value, arguments))
    return all(accepts(item, arguments[0] if arguments else Any) for item in value)


def _from_list(origin: type) -> bool:
    """Tell whether a YAML's list may stand for this type: a builtin collection, or an abstract one."""
    return issubclass(origin, list | tuple | AbstractSet) or origin.__module__ == "collections.abc"


def _is_a(value: object, wanted: type) -> bool:
    """Check one plain value against one class."""
    if isinstance(value, bool) and wanted in (int, float):
        return False
    if wanted is float:
        return isinstance(value, int | float)
    if wanted in (Path, PurePath, PathLike):
        return isinstance(value, str | PathLike)
    if issubclass(wanted, Enum):
        return isinstance(value, wanted) or any(value == member.value for member in wanted)
    try:
        return isinstance(value, wanted)
    except TypeError:  # a protocol or a TypedDict, which cannot be asked
        return True
