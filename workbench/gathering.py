"""The runs under some folders, read once: what is whole, how far the rest is, and what cannot be read."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.components import ConfigError
from workbench.results import RunFolder

ADVICE = "Give a study's folder, such as runs/quickstart; in each of its runs lies a journal.jsonl."
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, csv.Error)


@dataclass(frozen=True)
class Found:
    """One run of a study.

    Args:
        run: Its folder.
        study: The folder of the study; where a run does not lie as a study puts it, the folder that was given.
        laid_out: Whether it lies as a study puts it.
        summary: `RunFolder.summary`; empty where the run is not finished.
        problems: What is not as it should be and can be lived with, a sentence each.
    """

    run: RunFolder
    study: Path
    laid_out: bool
    summary: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def protocol(self) -> dict[str, Any]:
        """What has to stand beside the run's numbers."""
        return dict(self.run.environment()["protocol"])

    def progress(self) -> str:
        """How far the run is: tasks after which something was scored, of all."""
        tasks = len(self.protocol.get("order", ()))
        scored = sum(self.run.has_row(after) for after in range(1, tasks + 1))
        return f"{scored} of {tasks} tasks" if tasks else "nothing yet"


def gather(folders: Sequence[str | Path]) -> tuple[list[Found], list[str]]:
    """Every run under some folders, by path, and what could not be read.

    Raises:
        ConfigError: In one of the folders there is no run at all.
    """
    found: dict[Path, Found] = {}
    problems: list[str] = []
    empty = []
    for folder in map(Path, folders):
        paths = list(run_paths(folder))
        if not paths:
            empty.append(f"{folder}: there is no run. {ADVICE}")
        for path in paths:
            if (real := path.resolve()) in found:
                continue
            try:
                found[real] = _read(path, folder)
            except ConfigError as error:
                problems += error.problems
    if empty:
        raise ConfigError(empty)
    return list(found.values()), list(dict.fromkeys(problems))


def run_paths(folder: Path) -> Iterator[Path]:
    """The folders of runs, by path; hidden ones are no runs, and none lies in another."""
    for root, below, files in os.walk(folder):
        if "journal.jsonl" in files or {"config.yaml", "environment.json"} <= set(files):
            below.clear()
            yield Path(root)
        below[:] = sorted(name for name in below if not name.startswith("."))


def _read(path: Path, folder: Path) -> Found:
    """One run, with its summary if it is finished.

    Raises:
        ConfigError: It cannot be read, is no run of this workbench, or has not measured anything yet.
    """
    try:
        run = RunFolder(path)
        protocol = run.environment().get("protocol")
        if protocol is None:
            raise ConfigError([f"{path}: nothing was measured there, or it is no run of this workbench: left out."])
        place = (protocol["strategy"], protocol["order_name"], f"seed-{protocol['seed']}")
        laid_out = path.resolve().parts[-3:] == tuple(map(str, place))
        study = path.resolve().parents[2] if laid_out else folder
        return Found(run, study, laid_out, run.summary() if run.finished else {}, tuple(_complaints(run)))
    except ConfigError:
        raise
    except UNREADABLE as error:
        told = f"{path} cannot be read ({type(error).__name__}: {error}): left out."
        raise ConfigError([told]) from error


def _complaints(run: RunFolder) -> Iterator[str]:
    file = run.path / "scores.csv"
    journal = bool(run.journal.records)
    if journal and (not file.is_file() or file.read_bytes() != run.records.text("scores.csv").encode()):
        yield f"{file} is torn, missing or was changed: the journal's numbers are shown. `lightning run` mends it."
    folder = run.path / "predictions"
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = set(run.records.predictions) - there
    if not there:
        yield f"{run.path} has no predictions: what was answered cannot be shown."
    elif missing:
        count = f"{len(missing)} of {len(run.records.predictions)}"
        yield f"{run.path}: {count} files of predictions are missing: what was answered there cannot be shown."


# -- what may stand in one table

OF_A_STUDY = ("backbone", "data")
"""What may differ from seed to seed of one study, where its config leaves room for the seed."""


def aspects(found: Sequence[Found]) -> list[dict[str, str]]:
    """For each run what has to be equal for its numbers to be comparable with another's, as text."""
    own = [_aspects_of(one) for one in found]
    shared: dict[tuple[Path, str], set[str]] = {}
    for one, known in zip(found, own, strict=True):
        for name in OF_A_STUDY if one.laid_out else ():
            shared.setdefault((one.study, name), set()).add(known[name])
    return [
        {name: " or ".join(sorted(shared.get((one.study, name), {value}))) for name, value in known.items()}
        if one.laid_out
        else known
        for one, known in zip(found, own, strict=True)
    ]


def _aspects_of(one: Found) -> dict[str, str]:
    protocol = one.protocol
    rows = {name: protocol.get(name) or {} for name in ("primary", "test_rows", "training_rows", "text")}
    pairs = {
        **{f"metric of {task}": metric for task, metric in rows["primary"].items()},
        **{f"test rows of {task}": count for task, count in rows["test_rows"].items()},
        **{f"training rows of {task}": count for task, count in rows["training_rows"].items()},
        **{f"text, {name}": value for name, value in rows["text"].items()},
    }
    plain = ("benchmark", "backbone", "dtype", "end_token", "precision", "decoding")
    return {
        **{name: _text(protocol.get(name)) for name in plain},
        "scored on": _text(protocol.get("scored_on", "test")),
        "tasks": ", ".join(sorted(protocol["order"])),
        "probes": ", ".join(sorted(protocol["probes"])),
        "data": _text(one.run.environment().get("inputs", {}).get("data")),
        **{name: _text(value) for name, value in pairs.items()},
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def difference_in_words(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What keeps two groups of runs apart; of a difference that brings others along, the others are left out.

    >>> difference_in_words({"decoding": "greedy", "data": "a1"}, {"decoding": "sampled", "data": "b2"})
    'decoding: greedy here, sampled there; data: a1 here, b2 there'
    """
    if here.get("benchmark") != there.get("benchmark"):
        return f"benchmark: {here.get('benchmark')} here, {there.get('benchmark')} there"
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    shown = [f"{name}: {here.get(name, 'none')} here, {there.get(name, 'none')} there" for name in names]
    return "; ".join(shown[:4]) + (f"; and {len(shown) - 4} more" if len(shown) > 4 else "")


def labels(found: Sequence[Found]) -> list[str]:
    """A name for each run's strategy: its own, with the study's before it where several studies have the name."""
    studies: dict[str, set[Path]] = {}
    for one in found:
        studies.setdefault(one.protocol["strategy"], set()).add(one.study)
    made = []
    for one in found:
        name = one.protocol["strategy"]
        of = studies[name]
        length = next(
            (length for length in range(1, 100) if len({study.parts[-length:] for study in of}) == len(of)), 100
        )
        made.append(name if len(of) == 1 else "/".join((*one.study.parts[-length:], name)))
    return made
