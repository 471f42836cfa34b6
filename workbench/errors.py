"""Errors for users: `ConfigError`, "Did you mean", and exceptions described by their place in the user's own code."""

from __future__ import annotations

import difflib
import os
import re
import site
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHIPPED = tuple(str(HERE.parent / name) + os.sep for name in ("workbench", "strategies", "benchmarks"))
LIBRARIES = tuple(
    f"{Path(folder).resolve()}{os.sep}"
    for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *site.getsitepackages())
)
LONGEST_NAME = 230
"""Bytes of a name within a file's name, which has at most 255: a number, a suffix and a temporary ending are added."""
LONGEST_TEXT = 400
"""Characters of a foreign error's message that are shown."""


class ConfigError(ValueError):
    """All problems of a config in one error, so that a file need not be corrected one run at a time.

    Args:
        problems: One sentence each, which starts with the key that it is about.
        raw: The config as far as it could be read, so that its other parts can still be checked.
    """

    def __init__(self, problems: Iterable[str], raw: Mapping[str, Any] | None = None) -> None:
        self.problems = list(problems)
        self.raw = raw or {}
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the problems apart when the error is pickled by another process."""
        return type(self), (self.problems, self.raw)


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Suggest the candidate closest to a misspelt name; empty if none is close.

    >>> did_you_mean("rnk", ["rank", "alpha"])
    " Did you mean 'rank'?"
    """
    by_lower = {str(candidate).lower(): candidate for candidate in sorted(candidates)}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


def refuse_bare_strings(**given: Any) -> None:
    """Refuse a single string where a list of texts is expected: it would be read letter by letter.

    Args:
        given: Each argument by its name.

    Raises:
        ValueError: One of them is a string.
    """
    for name, texts in given.items():
        if isinstance(texts, str):
            raise ValueError(f"{name}={texts!r:.60} is one string. Give a list of texts.")


def name_problem(name: object) -> str:
    """Say why a name cannot be part of a file's or a folder's name; empty if it can.

    >>> name_problem("task"), name_problem("a/b")
    ('', "it has to be usable as a file's name")
    """
    if not isinstance(name, str):
        return f"expected a text, got a value of type {type(name).__name__}"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        size = 0
    if not size or name.startswith(".") or set(name) & set("/\0\n"):
        return "it has to be usable as a file's name"
    if size > LONGEST_NAME:
        return f"it has {size} bytes in UTF-8, and a file's name leaves room for {LONGEST_NAME}; choose a shorter one"
    return ""


def describe_error(error: BaseException, named: bool = False) -> str:
    """Describe an exception by its class, its message and its place in the user's own code.

    Args:
        error: The exception.
        named: Give the class of a ValueError raised by the workbench, too, whose message alone is shown otherwise.

    >>> describe_error(KeyError("fisher"))
    "KeyError: 'fisher'"
    """
    place, message = readers_line(error), " ".join(str(error).split()).rstrip(".")
    if isinstance(error, ValueError) and not place and not named:
        return str(error).strip()
    return type(error).__name__ + (f": {message}" if message else "") + (f" ({place})" if place else "")


def remedy(error: BaseException) -> str:
    """End the sentence of `describe_error` with a remedy, where the message does not contain one."""
    return ". Fix it." if readers_line(error) else "." if not isinstance(error, ValueError) else ""


def in_words(error: Exception, where: str, who: str = "") -> list[str]:
    """Describe an error from a component's constructor or hook as problems of the component's key.

    The message of a ValueError that a class raises itself is kept as it is.

    Args:
        error: The exception.
        where: The key of the component, dotted.
        who: The class or function that raised it.
    """
    text, place = " ".join(str(error).split()), readers_line(error)
    text = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
    if isinstance(error, ImportError):
        return [f"{where}: {who} needs a package that is not installed: {_missing_package(error, text)}"]
    if isinstance(error, ValueError) and text and _raised_by_class(error):
        return [f"{where}: {line}" for line in str(error).splitlines()]
    telling = text and (isinstance(error, ValueError | TypeError) or type(error).__module__ != "builtins")
    kind = "" if telling else type(error).__name__
    message = ": ".join(part for part in (where, who, kind, text.rstrip(".")) if part)
    return [f"{message} ({place}). Fix the class, or its init_args." if place else f"{message}. Fix its init_args."]


def readers_line(error: BaseException) -> str:
    """Return file, line and function of the innermost frame in the user's own code; empty if there is none.

    Python, installed packages and the workbench are not the user's own code.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if not frames:
        return ""
    file = Path(frames[-1].filename)
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown}, line {frames[-1].lineno}, in {frames[-1].name}"


def raised_by_reader(error: BaseException) -> bool:
    """Return True if the innermost frame outside of libraries is in the user's code, such as `open` in a hook."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    in_no_library = [file for file in files if _is_users(file) or file.startswith(SHIPPED)]
    return bool(in_no_library) and _is_users(in_no_library[-1])


def _is_users(file: str) -> bool:
    """Return True if a file belongs neither to Python, nor to an installed package, nor to the workbench."""
    if file.startswith("<frozen"):
        return False
    return not str(Path(file).resolve() if os.path.isabs(file) else file).startswith((*SHIPPED, *LIBRARIES))


def _raised_by_class(error: Exception) -> bool:
    """Return True if an error comes from a `raise` of the class itself, not from a library that it calls."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    in_no_library = last.filename.startswith(SHIPPED) or _is_users(last.filename)
    return in_no_library and re.search(r"\braise\b", last.line or "") is not None


def _missing_package(error: ImportError, text: str) -> str:
    """Say how to install what an import lacks."""
    wanted = re.search(r"pip install (?:-\S+ )?([^`]+)", text)
    if wanted or error.name:
        return f"pip install {wanted[1].strip() if wanted else str(error.name).partition('.')[0]}"
    return f"{text.rstrip('.')}. Get it, or choose another class."
