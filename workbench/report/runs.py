"""The runs under some folders, read once: what is whole, how far the rest is, and what cannot be read."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.report.settings import Settings, settings_of
from workbench.results import RunFolder
from workbench.runtime.files import digest_of_text

ADVICE = "Give a study's folder, such as runs/quickstart; in each of its runs lies a journal.jsonl."
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, csv.Error)


@dataclass(frozen=True)
class Found:
    """One run of a study.

    Args:
        run: Its folder.
        study: The folder of the study; where a run does not lie as a study puts it, the folder that was given.
        laid_out: Whether it lies as a study puts it.
        settings: What it was made with.
        summary: `RunFolder.summary`; empty where the run is not finished.
        problems: What is not as it should be and can be lived with, a sentence each.
    """

    run: RunFolder
    study: Path
    laid_out: bool
    settings: Settings
    summary: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of what the run learnt from, as far as they are known."""
        return dict(self.run.environment().get("inputs") or {})

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
    """Every run under some folders, by path, and what could not be read. A run that is there twice counts once.

    Raises:
        ConfigError: In one of the folders there is no run at all.
    """
    found: dict[Path, Found] = {}
    contents: dict[str, Found] = {}
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
                one = _read(path, folder)
            except ConfigError as error:
                problems += error.problems
                continue
            first = contents.setdefault(_content(one.run), one)
            if first is one:
                found[real] = one
            else:
                copies.append((path, first.run.path))
        problems += _counted_once(folder, len(paths), again, copies)
    if empty:
        raise ConfigError(empty)
    return list(found.values()), list(dict.fromkeys(problems))


def _content(run: RunFolder) -> str:
    """A fingerprint of all that a run has recorded: equal for a copy, and for nothing else that was timed."""
    tables = [run.records.text(name) for name in ("scores.csv", "nll.csv", "costs.csv")]
    file = run.path / "config.yaml"
    config = run.records.config or (file.read_text(encoding="utf-8") if file.is_file() else "")
    return digest_of_text(json.dumps([config, run.records.text("environment.json"), *tables]))


def _counted_once(folder: Path, count: int, again: int, copies: Sequence[tuple[Path, Path]]) -> Iterator[str]:
    """Say which runs of a folder are left out because they were there before."""
    if again:
        yield f"{folder}: {again} of its {count} runs lie in a folder that was given before: counted once."
    if len(copies) == 1:
        yield f"{copies[0][0]} is a copy of {copies[0][1]}: counted once."
    elif copies:
        told = f"{len(copies)} of its {count} runs are copies of runs that were found before"
        yield f"{folder}: {told}, such as {copies[0][0]} of {copies[0][1]}: counted once."


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
        summary = run.summary() if run.finished else {}
        return Found(run, study, laid_out, settings_of(run), summary, tuple(_complaints(run)))
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

SCORER = "scorer of "
OF_A_STUDY = ("backbone", "model", "data")
"""What may differ from seed to seed of one study, where its config leaves room for the seed."""


def aspects(found: Sequence[Found]) -> list[dict[str, str]]:
    """For each run what has to be equal for its numbers to be comparable with another's, as text."""
    own = [_aspects_of(one) for one in found]
    if not all(one.protocol.get("scorers") for one in found):  # a run of an earlier version does not state them
        own = [{name: value for name, value in known.items() if not name.startswith(SCORER)} for known in own]
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
    scorers = protocol.get("scorers") or {}
    pairs = {
        **{f"metric of {task}": metric for task, metric in rows["primary"].items()},
        **{f"{SCORER}{task}": scorers[task][name] for task, name in rows["primary"].items() if scorers.get(task)},
        **{f"test rows of {task}": count for task, count in rows["test_rows"].items()},
        **{f"training rows of {task}": count for task, count in rows["training_rows"].items()},
        **{f"text, {name}": value for name, value in rows["text"].items()},
    }
    pairs["text, tokenization"] = rows["text"].get("tokenization", "apart")
    pairs["optimizer state carried from task to task"] = protocol.get("carry_optimizer", False)
    plain = ("benchmark", "backbone", "dtype", "end_token", "precision", "decoding")
    return {
        **{name: _text(protocol.get(name)) for name in plain},
        "scored on": _text(protocol.get("scored_on", "test")),
        "tasks": ", ".join(sorted(protocol["order"])),
        "probes": ", ".join(sorted(protocol["probes"])),
        "data": _text(one.inputs.get("data")),
        "model": _text(one.inputs.get("model")),
        **{name: _text(value) for name, value in pairs.items()},
        **one.settings.budget,
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


@dataclass
class _Runs:
    """Runs of one strategy that are one row in any case: those of one study, or of one folder and equal settings."""

    where: Path
    places: list[int] = field(default_factory=list)
    identities: set[str] = field(default_factory=set)


def labels(found: Sequence[Found], kinds: Sequence[object]) -> list[str]:
    """A name for each run's strategy: its own, and with it the study's where runs of the name cannot be one row.

    Runs of several studies are one row if they were made with the same settings and code, and no order and seed is
    there twice: then they differ in their seeds alone.

    Args:
        found: All runs of a report.
        kinds: For each run what is equal in all runs that it may share a table with.
    """
    units: dict[str, dict[tuple[Path, str], _Runs]] = {}
    for place, one in enumerate(found):
        identity = _identity(one)
        named = units.setdefault(str(one.protocol["strategy"]), {})
        known = (one.study, "") if one.laid_out else (one.study, identity)
        alone = not one.laid_out and any(study == one.study for study, _ in named)
        unit = named.setdefault(known, _Runs(one.run.path if alone else one.study))
        unit.places.append(place)
        unit.identities.add(identity)
    made = [str(one.protocol["strategy"]) for one in found]
    for name, named in units.items():
        rows = _rows_of(list(named.values()), found, kinds)
        of = {unit.where for row in rows for unit in row}
        length = next((size for size in range(1, 100) if len({path.parts[-size:] for path in of}) == len(of)), 100)
        for row in rows if len(rows) > 1 else ():
            places = ["/".join(unit.where.parts[-length:]) for unit in row]
            for place in (place for unit in row for place in unit.places):
                made[place] = f"{name} ({', '.join(places)})"
    return made


def _identity(one: Found) -> str:
    """Equal for runs that differ in their seeds alone; of a run that does not say what it was made with, its study."""
    code = [one.inputs.get(name) for name in ("files", "code")]
    return json.dumps([one.settings.identity, code]) if one.settings.known else str(one.study)


def _rows_of(units: Sequence[_Runs], found: Sequence[Found], kinds: Sequence[object]) -> list[list[_Runs]]:
    """Join what was made alike, unless an order and seed would then be there twice in a table."""
    alike: dict[frozenset[str], list[_Runs]] = {}
    for unit in units:
        alike.setdefault(frozenset(unit.identities), []).append(unit)
    rows = []
    for own in alike.values():
        cells = [{(kinds[place], *_cell(found[place])) for place in unit.places} for unit in own]
        apart = sum(map(len, cells)) == len(set().union(*cells))
        rows += [own] if apart else [[unit] for unit in own]
    return rows


def _cell(one: Found) -> tuple[str, int]:
    return str(one.protocol["order_name"]), int(one.protocol["seed"])
