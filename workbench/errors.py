"""Describe an exception to the person whose code raised it: class, message, file and line."""

from __future__ import annotations

import os
import site
import sysconfig
import traceback
from pathlib import Path

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
