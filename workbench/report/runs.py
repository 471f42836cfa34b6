"""Read the runs under some folders once, decide which may share a table, and name their rows."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.report.settings import Settings, as_text, settings_of
from workbench.results import Protocol, RunFolder
from workbench.runtime.files import digest_of_text

ADVICE = "Give a study's folder, such as runs/quickstart; in each of its runs lies a journal.jsonl."
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, csv.Error)


@dataclass(frozen=True)
class FoundRun:
    """One run under the folders of a report.

    Args:
        run: Folder of the run.
        study: Folder of the study; for a run that does not lie where a study puts it, the folder that was given.
        laid_out: Whether the run lies where a study puts it.
        settings: Settings of the run.
        summary: `RunFolder.summary`; empty where the run is not finished.
        problems: Damage that leaves the numbers readable, a sentence each.
    """

    run: RunFolder
    study: Path
    laid_out: bool
    settings: Settings
    summary: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of the run's model, data and code, as far as the folder states them."""
        return dict(self.run.environment().get("inputs") or {})

    @property
    def protocol(self) -> Protocol:
        """What has to stand beside the run's numbers."""
        return self.run.protocol

    def progress(self) -> str:
        """Return the number of tasks after which anything was scored, of all."""
        tasks = len(self.protocol.order)
        scored = sum(self.run.has_row(after) for after in range(1, tasks + 1))
        return f"{scored} of {tasks} tasks"


def gather(folders: Sequence[str | Path]) -> tuple[list[FoundRun], list[str]]:
    """Read every run under some folders, by path; one that is there twice counts once.

    Returns:
        The runs, and what could not be read, a sentence each.

    Raises:
        ConfigError: One of the folders holds no run at all.
    """
    found: dict[Path, FoundRun] = {}
    contents: dict[str, FoundRun] = {}
    problems: list[str] = []
    empty = []
    for folder in map(Path, folders):
        paths, again, copies = list(run_paths(folder)), 0, []
        if not paths:
            empty.append(f"{folder}: there is no run. {ADVICE}")
        for path in paths:
            if (real := path.resolve()) in found:
                again += 1
                continue
            try:
                entry = _read(path, folder)
            except ConfigError as error:
                problems += error.problems
                continue
            first = contents.setdefault(_content(entry.run), entry)
            if first is entry:
                found[real] = entry
            else:
                copies.append((path, first.run.path))
        problems += _counted_once(folder, len(paths), again, copies)
    if empty:
        raise ConfigError(empty)
    return list(found.values()), list(dict.fromkeys(problems))


def _content(run: RunFolder) -> str:
    """Return a fingerprint of all that a run recorded, times among it, so that it is equal for copies alone."""
    tables = [run.records.text(name) for name in ("scores.csv", "nll.csv", "costs.csv")]
    file = run.path / "config.yaml"
    config = run.records.config or (file.read_text(encoding="utf-8") if file.is_file() else "")
    return digest_of_text(json.dumps([config, run.records.text("environment.json"), *tables]))


def _counted_once(folder: Path, count: int, again: int, copies: Sequence[tuple[Path, Path]]) -> Iterator[str]:
    """Report the runs of a folder that were read before."""
    if again:
        yield f"{folder}: {again} of its {count} runs lie in a folder that was given before: counted once."
    if len(copies) == 1:
        yield f"{copies[0][0]} is a copy of {copies[0][1]}: counted once."
    elif copies:
        copied = f"{len(copies)} of its {count} runs are copies of runs that were found before"
        yield f"{folder}: {copied}, such as {copies[0][0]} of {copies[0][1]}: counted once."


def run_paths(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs, by path; hidden folders are skipped, and no run lies within another."""
    for root, below, files in os.walk(folder):
        if "journal.jsonl" in files or {"config.yaml", "environment.json"} <= set(files):
            below.clear()
            yield Path(root)
        below[:] = sorted(name for name in below if not name.startswith("."))


def _read(path: Path, folder: Path) -> FoundRun:
    """Read one run, with its summary if it is finished.

    Raises:
        ConfigError: It cannot be read, is no run of this workbench, or has not measured anything yet.
    """
    try:
        run = RunFolder(path)
        stated = run.environment().get("protocol")
        if stated is None or ("strategy" in stated and "order" not in stated):  # tasks are stated after the strategy
            raise ConfigError([f"{path}: nothing was measured there, or it is no run of this workbench: left out."])
        place = (run.protocol.strategy, run.protocol.order_name, f"seed-{run.protocol.seed}")
        laid_out = path.resolve().parts[-3:] == place
        study = path.resolve().parents[2] if laid_out else folder
        summary = run.summary() if run.finished else {}
        return FoundRun(run, study, laid_out, settings_of(run), summary, tuple(_complaints(run)))
    except ConfigError:
        raise
    except UNREADABLE as error:
        raise ConfigError([f"{path} cannot be read ({type(error).__name__}: {error}): left out."]) from error


def _complaints(run: RunFolder) -> Iterator[str]:
    """Report a torn or edited table and missing predictions."""
    file = run.path / "scores.csv"
    journal = bool(run.journal.records)
    if journal and (not file.is_file() or file.read_bytes() != run.records.text("scores.csv").encode()):
        yield f"{file} is torn, missing or was changed: the journal's numbers are shown. `lightning run` repairs it."
    folder = run.path / "predictions"
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = set(run.records.predictions) - there
    if not there:
        yield f"{run.path} has no predictions: what was answered cannot be shown."
    elif missing:
        count = f"{len(missing)} of {len(run.records.predictions)}"
        yield f"{run.path}: {count} files of predictions are missing: what was answered there cannot be shown."


# -- what may stand in one table

SCORER = "scorer of "
OF_A_STUDY = ("backbone", "model", "data")
"""Aspects that may differ from seed to seed of one study, where its config depends on the seed."""


def aspects(found: Sequence[FoundRun]) -> list[dict[str, str]]:
    """Return for each run, as text, what must be equal for its numbers to be comparable with another run's."""
    every = [_aspects_of(entry) for entry in found]
    if not all(entry.protocol.scorers for entry in found):  # a run of an earlier version does not state them
        every = [{name: value for name, value in own.items() if not name.startswith(SCORER)} for own in every]
    of_studies: dict[tuple[Path, str], set[str]] = {}
    for entry, own in zip(found, every, strict=True):
        for name in OF_A_STUDY if entry.laid_out else ():
            of_studies.setdefault((entry.study, name), set()).add(own[name])
    return [
        {name: " or ".join(sorted(of_studies.get((entry.study, name), {value}))) for name, value in own.items()}
        if entry.laid_out
        else own
        for entry, own in zip(found, every, strict=True)
    ]


def _aspects_of(entry: FoundRun) -> dict[str, str]:
    stated = entry.protocol
    values = {
        **{name: getattr(stated, name) for name in ("benchmark", "backbone", "dtype", "end_token", "precision")},
        "decoding": stated.decoding,
        "scored on": stated.scored_on,
        "tasks": ", ".join(sorted(stated.order)),
        "probes": ", ".join(sorted(stated.probes)),
        "data": entry.inputs.get("data"),
        "model": entry.inputs.get("model"),
        **{f"metric of {task}": metric for task, metric in stated.primary.items()},
        **{
            f"{SCORER}{task}": stated.scorers[task][metric]
            for task, metric in stated.primary.items()
            if stated.scorers.get(task)
        },
        **{f"test rows of {task}": count for task, count in stated.test_rows.items()},
        **{f"training rows of {task}": count for task, count in stated.training_rows.items()},
        **{f"text, {name}": value for name, value in stated.text.items()},
        "text, tokenization": stated.tokenization,
        "optimizer state carried from task to task": stated.carry_optimizer,
    }
    return {name: as_text(value) for name, value in values.items()} | dict(entry.settings.budget)


def difference_in_words(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """Say in what two groups of runs differ; where the benchmarks differ, that alone.

    >>> difference_in_words({"decoding": "greedy", "data": "a1"}, {"decoding": "sampled", "data": "b2"})
    'decoding: greedy here, sampled there; data: a1 here, b2 there'
    """
    if here.get("benchmark") != there.get("benchmark"):
        return f"benchmark: {here.get('benchmark')} here, {there.get('benchmark')} there"
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    shown = [f"{name}: {here.get(name, 'none')} here, {there.get(name, 'none')} there" for name in names]
    return "; ".join(shown[:4]) + (f"; and {len(shown) - 4} more" if len(shown) > 4 else "")


@dataclass
class _Runs:
    """Runs of one strategy that are one row in any case: those of one study, or of one folder and equal settings.

    Args:
        where: Folder that tells the row from others of its name.
        places: Indices of the runs.
        identities: Settings and code of the runs.
    """

    where: Path
    places: list[int] = field(default_factory=list)
    identities: set[str] = field(default_factory=set)


def labels(found: Sequence[FoundRun], kinds: Sequence[object]) -> list[str]:
    """Return a name for each run's row: the strategy's, with the study's where runs of the name cannot be one row.

    Runs of several studies are one row if settings and code are the same and no order and seed occurs twice: then they
    differ in their seeds alone.

    Args:
        found: All runs of a report.
        kinds: For each run a value that is equal in all runs of its table.
    """
    units: dict[str, dict[tuple[Path, str], _Runs]] = {}
    for place, entry in enumerate(found):
        identity = _identity(entry)
        named = units.setdefault(entry.protocol.strategy, {})
        key = (entry.study, "") if entry.laid_out else (entry.study, identity)
        further = not entry.laid_out and any(study == entry.study for study, _ in named)
        unit = named.setdefault(key, _Runs(entry.run.path if further else entry.study))
        unit.places.append(place)
        unit.identities.add(identity)
    names = [entry.protocol.strategy for entry in found]
    for name, named in units.items():
        rows = _rows_of(list(named.values()), found, kinds)
        of = {unit.where for row in rows for unit in row}
        length = next((size for size in range(1, 100) if len({path.parts[-size:] for path in of}) == len(of)), 100)
        for row in rows if len(rows) > 1 else ():
            places = ["/".join(unit.where.parts[-length:]) for unit in row]
            for place in (place for unit in row for place in unit.places):
                names[place] = f"{name} ({', '.join(places)})"
    return names


def _identity(entry: FoundRun) -> str:
    """Return a text that is equal for runs that differ in their seeds alone; without a config, the study."""
    code = [entry.inputs.get(name) for name in ("files", "code")]
    return json.dumps([entry.settings.identity, code]) if entry.settings.known else str(entry.study)


def _rows_of(units: Sequence[_Runs], found: Sequence[FoundRun], kinds: Sequence[object]) -> list[list[_Runs]]:
    """Join units of equal settings, unless an order and seed would then occur twice in a table."""
    alike: dict[frozenset[str], list[_Runs]] = {}
    for unit in units:
        alike.setdefault(frozenset(unit.identities), []).append(unit)
    rows = []
    for joined in alike.values():
        cells = [{(kinds[place], *_cell(found[place])) for place in unit.places} for unit in joined]
        disjoint = sum(map(len, cells)) == len(set().union(*cells))
        rows += [joined] if disjoint else [[unit] for unit in joined]
    return rows


def _cell(entry: FoundRun) -> tuple[str, int]:
    return entry.protocol.order_name, entry.protocol.seed
