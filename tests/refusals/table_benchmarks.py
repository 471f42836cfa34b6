"""Arguments of the shipped benchmarks that cannot be, and folders of tasks that are not as they should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bad_inputs import Place, Row
from helpers.studies import write_tasks

import benchmarks
from benchmarks.mini_trace.sampling import distinct_rows
from benchmarks.trace import Trace
from workbench.benchmark import seeded_random


def row(make: Callable[..., object], says: str, *more: str, **arguments: Any) -> Row:
    """A benchmark that cannot be built."""
    return Row(f"{make.__module__} {make.__name__} {arguments}", (says, *more), lambda _: make(**arguments))


def trace(says: str, *more: str, **arguments: Any) -> Row:
    """What is asked of a whole folder of tasks."""
    lay: Callable[[Place], object] = lambda place: write_tasks(place.folder / "tasks")  # noqa: E731
    return Row(f"trace {arguments}", (says, *more), lambda _: Trace("tasks", **arguments), lay=lay)


def data(split: str, content: bytes | None, *says: str) -> Row:
    """A file of a task, given to the command as part of its study."""

    def lay(place: Place) -> None:
        place.config()
        file = write_tasks(place.folder / "tasks") / "alpha" / f"{split}.json"
        file.unlink() if content is None else file.write_bytes(content)

    argv = ("run", "small.yaml", "benchmark.init_args.path=tasks")
    return Row(f"{split}.json {content!r:.40}", (f"benchmark: alpha/{split}.json", *says), argv=argv, lay=lay)


def folder(name: str, lay: Callable[[Place], object], call: Callable[[], object], *says: str) -> Row:
    """A folder that is not what it should be."""
    return Row(name, says, lambda _: call(), lay=lay)


def note(place: Place) -> None:
    (place.folder / "made").mkdir()
    (place.folder / "made" / "note.txt").write_text("mine")


def recipe(content: str) -> Callable[[Place], object]:
    def lay(place: Place) -> None:
        note(place)
        (place.folder / "made" / "recipe.json").write_text(content)

    return lay


PROTOCOL = [trace("protocol: there is no 'publish'. Did you mean 'published'?", protocol="publish")]
ARITHMETIC = []
OTHERS = [
    Row(
        "one prompt alone",
        ("Only 1 different prompts were found where 2 are asked for: take fewer rows.",),
        lambda _: distinct_rows(lambda _: ("a", "b"), seeded_random("test"), 2),
    ),
    Row(
        "a benchmark's name",
        ("module 'benchmarks' has no attribute 'Nope'. Choose",),
        lambda _: benchmarks.Nope,
        error=AttributeError,
    ),
]
MADE = []
TRACE = []
DATA = []
ROWS = [*PROTOCOL, *ARITHMETIC, *OTHERS, *MADE, *TRACE, *DATA]
