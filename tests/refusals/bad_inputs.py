"""Rows of a table of bad inputs, and the outcome of each: message, exit status, files written."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.studies import study
from omegaconf import OmegaConf

from workbench.cli import app, guarded


@dataclass(frozen=True)
class Place:
    """Where a row is tried.

    Args:
        folder: An empty one, which is the current one as well.
        model: A folder with a model of two layers.
        tasks: A folder with two tasks.
    """

    folder: Path
    model: Path
    tasks: Path

    def copied(self, name: str = "model") -> Path:
        """A copy of the model's folder, to be damaged."""
        return Path(shutil.copytree(self.model, self.folder / name))

    def config(self, **changes: Any) -> None:
        """Writes the small study to small.yaml."""
        raw = study(self.model, self.tasks, self.folder / "runs", **changes)
        OmegaConf.save(OmegaConf.create(raw), self.folder / "small.yaml")


Lay = Callable[[Place], object]


def nothing(_: Place) -> None:
    """The input is on the command line alone."""


@dataclass(frozen=True, eq=False)
class Row:
    """One bad input.

    Args:
        name: Of the row.
        says: What the message has to contain: what was given, what was expected and what to do; a sentence such as "it
            has to be at least 1" is the last two in one.
        call: What is done with it in Python.
        argv: Or the command line that it is given to.
        lay: Writes the folders and files that it consists of.
        error: The class that is raised.
        status: With which the command leaves.
        leaves: Work had begun before it could be known; what was measured by then is kept.
    """

    name: str
    says: Sequence[str]
    call: Callable[[Place], object] | None = None
    argv: Sequence[str] = ()
    lay: Lay = nothing
    error: type[BaseException] = ValueError
    status: int = 2
    leaves: bool = False


@dataclass
class Outcome:
    """What became of a row."""

    told: str = ""
    out: str = ""
    status: int | None = None
    error: BaseException | None = None
    written: list[str] = field(default_factory=list)


def outcome(row: Row, place: Place) -> Outcome:
    """Give a bad input to the program and record the message, the status and the files that it wrote."""
    found = Outcome()
    before = Path.cwd()
    place.folder.mkdir()
    os.chdir(place.folder)
    try:
        row.lay(place)
        then = tree(place.folder)
        _command(row.argv, found) if row.argv else _call(row, place, found)
        now = tree(place.folder)
        found.written = sorted(name for name in {**then, **now} if then.get(name) != now.get(name))
    finally:
        os.chdir(before)
        shutil.rmtree(place.folder)
    return found


def _call(row: Row, place: Place, found: Outcome) -> None:
    try:
        row.call(place)  # type: ignore[misc]
    except BaseException as error:
        found.error, found.told = error, str(error)


def _command(argv: Sequence[str], found: Outcome) -> None:
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        try:
            found.status = guarded(lambda: app(list(argv), standalone_mode=True))
        except SystemExit as left:
            found.status = int(str(left.code))
        except BaseException:
            traceback.print_exc()
    found.told, found.out = told.getvalue(), out.getvalue()


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its content's checksum, and every folder; what Python compiles is left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts and path.name != ".lock":
            name = path.relative_to(folder).as_posix()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found
