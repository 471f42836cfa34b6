"""Errors for the reader: `ConfigError`, checks with a sentence, and descriptions of exceptions."""

from __future__ import annotations

import difflib
import os
import site
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.runtime.files import LONGEST_NAME, _encodes

HERE = Path(__file__).resolve().parent
SHIPPED = tuple(str(HERE.parent / name) + os.sep for name in ("workbench", "strategies", "benchmarks"))
LIBRARIES = tuple(
    f"{Path(folder).resolve()}{os.sep}"
    for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *site.getsitepackages())
)


def describe_error(error: BaseException, named: bool = False) -> str:
    """Class, message and where in the reader's own code it was raised.

    Args:
        error: What was raised.
        named: Whether a refusal (ValueError) of ours has its class before its message, too.

    >>> describe_error(KeyError("fisher"))
    "KeyError: 'fisher'"
    """
    place, message = readers_line(error), " ".join(str(error).split()).rstrip(".")
    if isinstance(error, ValueError) and not place and not named:
        return str(error).strip()
    return type(error).__name__ + (f": {message}" if message else "") + (f" ({place})" if place else "")


def remedy(error: BaseException) -> str:
    """What to do, as a sentence, where `describe_error` names a line; a refusal's own message says it."""
    return ". Mend it." if readers_line(error) else "." if not isinstance(error, ValueError) else ""


def readers_line(error: BaseException) -> str:
    """File, line and function of the innermost frame of the reader's own code; "": there is none.

    What lies in Python, in an installed package or in the workbench is not the reader's.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_readers(frame.filename)]
    if not frames:
        return ""
    file = Path(frames[-1].filename)
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown}, line {frames[-1].lineno}, in {frames[-1].name}"


def raised_by_reader(error: BaseException) -> bool:
    """Whether the innermost frame that is no library's belongs to the reader's code, such as `open` in a hook."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [file for file in files if is_readers(file) or file.startswith(SHIPPED)]
    return bool(own) and is_readers(own[-1])


def is_readers(file: str) -> bool:
    """Whether a file is neither Python's, nor an installed package's, nor the workbench's."""
    if file.startswith("<frozen"):
        return False
    return not str(Path(file).resolve() if os.path.isabs(file) else file).startswith((*SHIPPED, *LIBRARIES))


class ConfigError(ValueError):
    """All that is wrong with a config, told at once: nobody should have to fix a file one run at a time.

    Args:
        problems: One sentence each, which starts with the key it is about.
        raw: The config as far as it could be read, so that the rest of it can be looked at all the same.
    """

    def __init__(self, problems: Iterable[str], raw: Mapping[str, Any] | None = None) -> None:
        self.problems = list(problems)
        self.raw = raw or {}
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """From another process it comes with its sentences apart."""
        return type(self), (self.problems, self.raw)


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Name the candidate that was probably meant.

    >>> did_you_mean("rnk", ["rank", "alpha"])
    " Did you mean 'rank'?"
    """
    by_lower = {str(candidate).lower(): candidate for candidate in sorted(candidates)}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


def refuse_bare_strings(**given: Any) -> None:
    """Refuse a single string where several texts are expected: it would be read letter by letter.

    Args:
        given: Each argument by its name.

    Raises:
        ValueError: One of them is a string.
    """
    for name, texts in given.items():
        if isinstance(texts, str):
            raise ValueError(f"{name}={texts!r:.60} is one string. Give a list of texts.")


def name_problem(name: object) -> str:
    """Say why a name cannot become part of a file's or a folder's name; empty where it can.

    >>> name_problem("task"), name_problem("a/b")
    ('', "it has to be usable as a file's name")
    """
    if not isinstance(name, str):
        return f"expected a text, got a value of type {type(name).__name__}"
    if not name or name.startswith(".") or set(name) & set("/\0\n") or not _encodes(name):
        return "it has to be usable as a file's name"
    if (size := len(name.encode())) > LONGEST_NAME:
        return f"it has {size} bytes in UTF-8, and a file's name leaves room for {LONGEST_NAME}; choose a shorter one"
    return ""
