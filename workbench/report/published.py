"""Published numbers beside a user's own: from the file that a benchmark brings along, differences of protocol said."""

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
    """One line of a published table.

    Args:
        strategy: As the paper calls it.
        values: Measures by the names of `MEASURES`, in [0, 1] like ours; what was not published is not there.
        source: The paper.
        table: Its table; None: not known.
        differences: In what its protocol differs from the comparison's, or may differ, a phrase each.
        notes: What else is to be known of it.
        tasks: What was learnt.
    """

    strategy: str
    values: dict[str, float]
    source: str
    table: str | None
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tasks: tuple[str, ...] = ()


def beside(comparison: Comparison) -> list[PublishedRow]:
    """What was published on the comparison's benchmark and its relatives; none where no `published.json` names it."""
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
    """Of what was published the tables that share a task with the comparison: those can stand beside its numbers."""
    own = {task for run in comparison.runs for task in run.environment()["protocol"]["order"]}
    tables: dict[tuple[str, str | None], list[PublishedRow]] = {}
    for row in beside(comparison) if own and "benchmark" in comparison.protocol else ():
        if own & {*row.tasks}:
            tables.setdefault((row.source, row.table), []).append(row)
    return list(tables.values())


def published(benchmark: str) -> dict[str, Any]:
    """The content of the `published.json` that names a benchmark; nothing where there is none.

    It lies in the benchmark's package or in a folder of that, and is found without running any code: a report may be
    made of run folders from anywhere, and what they name is not imported.

    Args:
        benchmark: Import path of its class.
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


def _differences(told: Mapping[str, Any], comparison: Comparison) -> Iterator[str]:
    own = comparison.protocol
    orders = [run.environment()["protocol"] for run in comparison.runs] or [own]
    tasks = sorted(orders[0].get("order", ()))
    if sorted(told["tasks"]) != tasks:
        yield f"benchmark: {told['benchmark']} ({len(told['tasks'])} tasks there, {len(tasks)} here)"
    here = own.get("backbone", "several models")
    if told["model"] is None:
        yield f"model: not stated there, {here} here"
    elif Path(here).name.lower() not in [name.lower() for name in told["models"]]:
        yield f"model: {told['model']} there, {here} here"
    rows = sorted({*own.get("training_rows", {}).values()})
    yield from _stated("training rows", told["training_rows"], rows)
    yield from _stated("decoding", told["decoding"], own.get("decoding"))
    if told["order"] is None or comparison.orders != [told["order"]]:
        yield f"order: {told['order'] or 'not stated'} there, {' and '.join(comparison.orders) or 'none'} here"
    if "tokenization" in told:
        yield from _stated("tokenization", told["tokenization"], own.get("text", {}).get("tokenization", "apart"))
    if "carry_optimizer" in told:
        words = {True: "one for all tasks", False: "anew with each task", None: "several ways"}
        here = words[own.get("carry_optimizer", False)]
        yield from _stated("optimizer", words[told["carry_optimizer"]], here)
    if own.get("scored_on", "test") != "test":
        yield f"scored on: test rows there, {own['scored_on']} rows here"
    longest = own.get("text", {}).get("max_prompt_length")
    if told["max_prompt_length"] is not None:
        yield from _stated("longest prompt, in tokens", told["max_prompt_length"], longest)


def _stated(name: str, there: Any, here: Any) -> Iterator[str]:
    shown = [", ".join(map(str, value)) if isinstance(value, list) else value for value in (there, here)]
    if there is None:
        yield f"{name}: not stated there, {shown[1]} here"
    elif there != here:
        yield f"{name}: {shown[0]} there, {shown[1]} here"
