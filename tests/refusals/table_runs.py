"""Folders of runs that are not as they were written, or that belong to another study."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from bad_inputs import Place, Row
from filelock import FileLock
from helpers.studies import study

from workbench.config import parse
from workbench.runtime.files import only_process
from workbench.statistics import student_quantile
from workbench.study import Study

RUN = Path("runs", "small", "seqft", "default", "seed-0")


@cache
def finished(model: Path, tasks: Path) -> Path:
    """A study's folder that other rows copy."""
    output = model.parent / "finished"
    Study(parse(study(model, tasks, output))).run()
    return output


def ended(damage: Callable[[Path], object] = lambda _: None) -> Callable[[Place], None]:
    """A finished study whose run is damaged, and its config."""

    def lay(place: Place) -> None:
        place.config()
        shutil.copytree(finished(place.model, place.tasks), place.folder / "runs")
        damage(place.folder / RUN)

    return lay


def journal(*records: dict[str, Any]) -> Callable[[Path], object]:
    """Records with right checksums in place of the journal's."""

    def damage(run: Path) -> None:
        lines, total = [], 0
        for record in records:
            text = json.dumps(record).encode()
            total = zlib.crc32(text, total)
            lines.append(b"%08x %s\n" % (total, text))
        (run / "journal.jsonl").write_bytes(b"".join(lines))

    return damage


def replaced(name: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes().replace(old, new, 1))


def old(name: str, content: bytes) -> Callable[[Path], object]:
    """A file of a run that was made before there were journals."""

    def damage(run: Path) -> None:
        (run / "journal.jsonl").unlink()
        (run / name).write_bytes(content)

    return damage


def command(name: str, line: str, lay: Callable[[Place], object], *says: str, **how: Any) -> Row:
    return Row(f"{line}, {name}", says, argv=line.split(), lay=lay, **how)


def twice(place: Place) -> None:
    lock = FileLock(place.folder / ".lock")
    with lock, only_process(place.folder):
        pass


LONG = ("a" * 70, "b" * 70)


def named_long(place: Place) -> None:
    """Two studies whose names together are too long for a folder, and a file."""
    ended()(place)
    for name in LONG:
        shutil.copytree(place.folder / "runs" / "small", place.folder / name)
    (place.folder / "mine.txt").write_text("a text")


REPORT, EXPORT, STUDY = "report runs/small", "export runs/small out", "run small.yaml"
CELL = {"kind": "cell", "after": 1}
READ = [
    command(
        "scored too seldom",
        f"{REPORT} relearning.every=300",
        ended(),
        "relearning: every=300 is out of range; it has to be at least 1 and at most max_steps=200.",
    ),
    command(
        "a tolerance above all scores",
        f"{REPORT} relearning.tolerance=2",
        ended(),
        "relearning: tolerance=2 is out of range; it has to be at least 0 and less than 1.",
    ),
    command(
        "a report over a study's own", f"{REPORT} out=runs/small/seqft", ended(), "there are runs, whose own report"
    ),
    command(
        "a report over a file", f"{REPORT} out=mine.txt", named_long, "out: mine.txt is no folder. Give a folder of"
    ),
    command(
        "a report of many names", f"report {' '.join(LONG)}", named_long, "report: 2 folders need a folder for their"
    ),
    command("a report of nothing", "report baseline=seqft", lambda _: None, "report: no folder is given. Give"),
    command("no strategy", REPORT, ended(old("environment.json", b'{"protocol": {}}')), "cannot be read", "Give"),
    Row("a level of nothing", ("level=2, freedom=1: give a level between 0 and 1",), lambda _: student_quantile(2, 1)),
    command(
        "no protocol",
        EXPORT,
        ended(old("environment.json", b"{}")),
        "environment.json does not say what the scores mean",
        "Delete",
    ),
]
DAMAGED = [
    (journal(CELL), "journal.jsonl, line 1, cannot be understood", "a cell without its scores"),
    (journal({"kind": "verse"}), "journal.jsonl, line 1, cannot be understood", "a strange kind"),
    (journal({"kind": 3}), "journal.jsonl, line 1, cannot be understood", "a number for a kind"),
    (journal([1]), "journal.jsonl, line 1, cannot be understood", "a list"),  # type: ignore[arg-type]
    (replaced("journal.jsonl", b'"after": 0', b'"after": 9'), "is damaged. Delete", "a changed line"),
    (old("environment.json", b"{"), "environment.json cannot be read", "half an object"),
    (old("environment.json", b"[]"), "environment.json cannot be read", "a list of settings"),
    (old("environment.json", b'{"protocol": 3}'), "environment.json cannot be read", "a number for a protocol"),
    (old("scores.csv", b"a,b\n1,2\n"), "scores.csv cannot be read", "other columns"),
    (old("scores.csv", b"\xff\xfe"), "scores.csv cannot be read", "bytes"),
    (
        old("scores.csv", b"after,on,metric,value,count\none,alpha,accuracy,0.5,4\n"),
        "scores.csv cannot be read",
        "words",
    ),
    (
        old("scores.csv", b'after,on,metric,value,count\n"' + b"x" * 200_000),
        "scores.csv cannot be read",
        "a long field",
    ),
]
FOLDERS = [
    *(command(name, REPORT, ended(damage), told, "Delete") for damage, told, name in DAMAGED),
    *(command(name, STUDY, ended(damage), "seed-0", "Delete") for damage, _, name in DAMAGED[-6:-4]),
    Row("another process", ("is in use by another process. Wait for it",), twice, error=BlockingIOError),
]
ROWS = [*READ, *FOLDERS]
