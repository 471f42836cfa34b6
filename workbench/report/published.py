"""Published numbers beside a user's own, from the file of a benchmark, with the differences in protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.config.components import make_importable
from workbench.report.comparison import MEASURES, Comparison

FILE = "published.json"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    Args:
        strategy: Name in the paper.
        values: Values by the names of `MEASURES`, in [0, 1] like ours; measures that were not published are left out.
        source: The paper.
        table: Table of the paper; None: not known.
        differences: Differences in protocol from the comparison, certain or possible, a phrase each.
        notes: Further remarks on the protocol.
        tasks: Names of the tasks learnt.
    """

    strategy: str
    values: dict[str, float]
    source: str
    table: str | None
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tasks: tuple[str, ...] = ()


def beside(comparison: Comparison) -> list[PublishedRow]:
    """Return what was published on the comparison's benchmark; nothing where no `published.json` names it."""
    return [
        PublishedRow(
            strategy=row["strategy"],
            values={name: row[name] / known["scale"] for name in MEASURES if name in row},
            source=table["source"],
            table=table["table"],
            differences=list(_differences(table["protocol"], comparison)),
            notes=list(table["protocol"]["notes"]),
            tasks=tuple(table["protocol"]["tasks"]),
        )
        for known in [published(comparison.protocol["benchmark"])]
        for table in known.get("tables", [])
        for row in table["rows"]
    ]


def on_these_tasks(comparison: Comparison) -> list[list[PublishedRow]]:
    """Return the published tables that share a task with the comparison, so that they can stand beside its numbers."""
    tasks = {task for run in comparison.runs for task in run.layout.order}
    tables: dict[tuple[str, str | None], list[PublishedRow]] = {}
    for row in beside(comparison) if tasks else ():
        if tasks & {*row.tasks}:
            tables.setdefault((row.source, row.table), []).append(row)
    return list(tables.values())


def published(benchmark: str) -> dict[str, Any]:
    """Return the content of the `published.json` that names a benchmark; {} where there is none.

    It lies in the benchmark's package or in a folder of that, and is found without running any code: run folders may
    come from anywhere, and what they name is not imported.

    Args:
        benchmark: Import path of the benchmark's class.
    """
    make_importable(Path.cwd())
    try:
        spec = find_spec(benchmark.partition(".")[0])
    except (ImportError, ValueError):
        return {}
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        for file in sorted([*folder.glob(FILE), *folder.glob(f"*/{FILE}")]):
            known = dict(json.loads(file.read_text(encoding="utf-8")))
            if benchmark in known.get("benchmarks", ()):
                return known
    return {}


def _differences(theirs: Mapping[str, Any], comparison: Comparison) -> Iterator[str]:
    """Yield the differences of a published protocol from the comparison's, certain or possible."""
    ours = comparison.runs[0].protocol
    if sorted(theirs["tasks"]) != sorted(ours.order):
        yield f"benchmark: {theirs['benchmark']} ({len(theirs['tasks'])} tasks there, {len(ours.order)} here)"
    model = comparison.protocol.get("backbone", "several models")
    if theirs["model"] is None:
        yield f"model: not stated there, {model} here"
    elif Path(model).name.lower() not in [name.lower() for name in theirs["models"]]:
        yield f"model: {theirs['model']} there, {model} here"
    yield from _stated("training rows", theirs["training_rows"], sorted({*ours.training_rows.values()}))
    yield from _stated("decoding", theirs["decoding"], ours.decoding)
    if theirs["order"] is None or comparison.orders != [theirs["order"]]:
        yield f"order: {theirs['order'] or 'not stated'} there, {' and '.join(comparison.orders)} here"
    if "tokenization" in theirs:
        yield from _stated("tokenization", theirs["tokenization"], ours.tokenization)
    if "carry_optimizer" in theirs:
        words = {True: "one for all tasks", False: "anew with each task", None: "several ways"}
        yield from _stated("optimizer", words[theirs["carry_optimizer"]], words[ours.carry_optimizer])
    if ours.scored_on != "test":
        yield f"scored on: test rows there, {ours.scored_on} rows here"
    if theirs["max_prompt_length"] is not None:
        longest = ours.text.get("max_prompt_length")
        yield from _stated("longest prompt, in tokens", theirs["max_prompt_length"], longest)


def _stated(name: str, there: Any, here: Any) -> Iterator[str]:
    shown = [", ".join(map(str, value)) if isinstance(value, list) else value for value in (there, here)]
    if there is None:
        yield f"{name}: not stated there, {shown[1]} here"
    elif there != here:
        yield f"{name}: {shown[0]} there, {shown[1]} here"
