"""Published numbers beside a user's own: from the file that a benchmark brings along, differences of protocol said."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.comparison import MEASURES, Comparison
from workbench.components import ConfigError
from workbench.imports import import_class

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
    """

    strategy: str
    values: dict[str, float]
    source: str
    table: str | None
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def beside(comparison: Comparison) -> list[PublishedRow]:
    """What was published on the comparison's benchmark; none where its module has no `published.json` beside it."""
    return [
        PublishedRow(
            strategy=row["strategy"],
            values={name: row[name] / known["scale"] for name in MEASURES if name in row},
            source=table["source"],
            table=table["table"],
            differences=list(_differences(table["protocol"], comparison)),
            notes=list(table["protocol"]["notes"]),
        )
        for known in [published(comparison.protocol["benchmark"])]
        for table in known.get("tables", [])
        for row in table["rows"]
    ]


def published(benchmark: str) -> dict[str, Any]:
    """The content of the file beside a benchmark's module; nothing where there is none.

    Args:
        benchmark: Import path of its class.
    """
    try:
        file = Path(inspect.getfile(import_class(benchmark))).parent / FILE  # type: ignore[arg-type]
    except (ConfigError, TypeError, OSError):
        return {}
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


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
