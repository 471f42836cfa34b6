"""Check values of a YAML against the annotations of a signature or a dataclass.

An annotation that is not understood accepts anything: a false alarm would keep somebody from a correct run.
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

from workbench.errors import did_you_mean

UNIONS = (Union, types.UnionType)


@dataclass(frozen=True)
class Produced:
    """Stand-in for the object that a component will be built to.

    Args:
        maker: The component's class, or a function (its result is not known), or None if it could not be imported.
    """

    maker: Callable[..., Any] | None


def check_type(value: Any, annotation: Any, where: str) -> list[str]:
    """Return one sentence if a value does not have the annotated type.

    Args:
        value: The value as read; a component in it is taken as the mapping that it is.
        annotation: The expected type.
        where: The value's key, dotted.
    """
    return [] if accepts(value, annotation) else [mismatch(value, annotation, where)]


def mismatch(value: Any, annotation: Any, where: str) -> str:
    """Say which type was expected and which value was given."""
    hint = did_you_mean(value, choices(annotation)) if isinstance(value, str) else ""
    return f"{where}: expected {described(annotation)}, got {value!r} ({type(value).__name__}).{hint}"


def joined(where: str, key: object) -> str:
    """Append a key to a dotted path.

    >>> joined("strategies.lora", "init_args"), joined("", "name")
    ('strategies.lora.init_args', 'name')
    """
    return f"{where}.{key}" if where else str(key)


def accepts(value: object, annotation: Any) -> bool:
    """Return True if an annotation allows a value, by the rules of a YAML.

    An int is accepted as a float, a list as a tuple, a text as a `Path` or as an `Enum`'s value; a bool is not
    accepted as an int, nor a text as a sequence of texts.

    >>> accepts([0.9, 1], tuple[float, float]), accepts("many", int | None), accepts(True, int)
    (True, False, False)
    """
    origin = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation)
    if annotation in (Any, inspect.Parameter.empty):
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
        return _may_produce(value.maker, origin)
    many = issubclass(origin, Iterable) and not issubclass(origin, str | bytes | Enum)
    return _is_collection(value, origin, arguments) if many else _is_instance(value, origin)


def described(annotation: Any) -> str:
    """Write an annotation in words.

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
    """List the texts that the `Literal`s of an annotation name.

    >>> choices(Literal["none", "chat"] | None)
    ['none', 'chat']
    """
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return [option for option in arguments if isinstance(option, str)]
    return [text for argument in arguments for text in choices(argument)]


def _may_produce(maker: Callable[..., Any] | None, wanted: Any) -> bool:
    """Return True if a component may be built to an instance of `wanted`; only a class states what it returns."""
    if not isinstance(maker, type) or wanted is Callable:
        return True
    try:
        return issubclass(maker, wanted)
    except TypeError:  # a protocol that is not checkable at run time
        return True


def _is_collection(value: object, origin: type, arguments: tuple[Any, ...]) -> bool:
    """Check a collection and its items."""
    if issubclass(origin, Mapping):
        key_type, item_type = arguments if len(arguments) == 2 else (Any, Any)
        return isinstance(value, Mapping) and all(
            accepts(key, key_type) and accepts(item, item_type) for key, item in value.items()
        )
    if not isinstance(value, list | tuple | AbstractSet):
        return isinstance(value, origin) and not isinstance(value, str | bytes | Mapping)
    if not issubclass(origin, list | tuple | AbstractSet) and origin.__module__ != "collections.abc":
        return False  # a class of its own, which a YAML's list cannot stand for
    if issubclass(origin, tuple) and arguments and arguments[-1] is not ...:
        return len(value) == len(arguments) and all(map(accepts, value, arguments))
    return all(accepts(item, arguments[0] if arguments else Any) for item in value)


def _is_instance(value: object, wanted: type) -> bool:
    """Check a single value against a class."""
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
    except TypeError:  # a protocol or a TypedDict, which is not checkable at run time
        return True
