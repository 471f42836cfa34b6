"""Guard of the user's script: a worker process imports the script first, and must not start the study again."""

from __future__ import annotations

import ast
import os
import sys
import threading
from collections.abc import Iterator
from multiprocessing import current_process
from pathlib import Path
from types import FrameType

UNGUARDED = 97
"""Exit status of a worker that began the user's script from its start, for want of a guard."""
GUARD = (
    'Put what runs the study under `if __name__ == "__main__":` in your script: each worker imports the script first, '
    "and would start the study again."
)


def can_start_workers() -> bool:
    """Return True if a worker process will not execute the user's script again.

    The workers import a script under another name than `__main__`; what stands under a guard is then left out. Modules
    that were started by `python -m package`, and interactive sessions, are not imported.
    """
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if current_process().daemon:  # may have no children
        return False
    if file is None or (spec is not None and spec.name.endswith(".__main__")):
        return True
    lines = [frame.f_lineno for frame in _main_frames() if frame.f_code.co_filename.endswith(Path(file).name)]
    return bool(lines) and _is_guarded(Path(file), lines[-1])


def _main_frames() -> Iterator[FrameType]:
    """Yield the frames of the main thread that execute the main module itself, the outermost last."""
    number = threading.main_thread().ident
    frame = sys._current_frames().get(number) if number is not None else None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            yield frame
        frame = frame.f_back


def _is_guarded(file: Path, line: int) -> bool:
    """Return True if a line of a script is within an `if` that asks for `__name__`."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    around = [node for node in tree.body if node.lineno <= line <= (node.end_lineno or node.lineno)]
    return any(isinstance(node, ast.If) and "id='__name__'" in ast.dump(node.test) for node in around)


def leave_a_second_start() -> None:
    """End this process at once if it is a worker that still imports the user's script, which has no guard."""
    if getattr(current_process(), "_inheriting", False):  # set by multiprocessing while it prepares a child
        os._exit(UNGUARDED)


def refuse_unguarded(code: int) -> None:
    """End the program if a worker came to the start of a study instead of executing runs.

    Args:
        code: Exit status of the worker.

    Raises:
        SystemExit: The status is `UNGUARDED`; the message says what the script needs.
    """
    if code == UNGUARDED:
        raise SystemExit(f"error: {GUARD}")
