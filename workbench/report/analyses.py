"""Tables of the analyses on demand, relearning and knock-out, from the files that they leave beside a report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.config.loading import arguments
from workbench.errors import ConfigError, did_you_mean
from workbench.formatting import number
from workbench.report.comparison import Comparison
from workbench.results import RunFolder
from workbench.runtime.files import digest_of_text, read_csv
from workbench.statistics import mean

ANALYSES = {
    "relearning": "workbench.analysis.Relearning",
    "knock_out": "workbench.analysis.KnockOut",
}
PLAIN = ("baseline", "out")
"""Keys of a report that request no analysis."""
NAMED = ("run", "model", "strategy", "order", "seed", "domain")
COLUMNS = {
    "relearning": (
        "metric",
        "learnt",
        "target",
        "before",
        "steps",
        "untouched",
        "steps_untouched",
        "savings",
        "rows",
        "optimizer",
        "every",
        "max_steps",
        "tolerance",
    ),
    "knock_out": ("part", "metric", "whole", "without", "change", "rows"),
}
RELEARNING = (
    "The final model is fine-tuned on a domain's training rows, all parameters, by {optimizer} at a constant rate, "
    "whatever the strategy itself trained, until its score on {rows} validation rows is the one recorded right after "
    "the domain was learnt, minus {tolerance}; scored every {every} steps, given up after {max_steps}. Savings: "
    "1 - steps / the base model's steps to the same score (Ebbinghaus, 1885); 1: nothing had to be learnt again. "
    "The recorded score is of the rows that the study was scored on."
)
KNOCK_OUT = (
    "Change of the primary score where one added block passes its input on, or one adapter is subtracted from the "
    "weights; nothing is trained. Below 0: the domain needs the part."
)


def requested(settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the analyses that `key=value` arguments request: true, false or a mapping of settings, by name.

    Raises:
        ConfigError: A key is unknown, or a value is not valid YAML.
    """
    known = (*PLAIN, *ANALYSES)
    if unknown := [key for key in settings if key not in known and key.partition(".")[0] not in ANALYSES]:
        raise ConfigError([f"{unknown[0]}: a report has no such key.{did_you_mean(unknown[0], known)}"])
    detailed = {
        key.partition(".")[0] for key in settings if "." in key and settings.get(key.partition(".")[0]) == "true"
    }
    return arguments([f"{key}={value}" for key, value in settings.items() if key not in {*PLAIN, *detailed}])


def columns_of(name: str) -> tuple[str, ...]:
    """Return the columns of an analysis's file."""
    return NAMED + COLUMNS[name]


def model_of(run: RunFolder) -> str:
    """Return a fingerprint of a run's final model, so that a run that was repeated is analysed again.

    From the checksums in the journal; in folders without a journal, from the sizes of the files.
    """
    files: dict[str, Any] = dict(run.records.model or {})
    if not files:
        model = run.path / "model"
        files = {path.relative_to(model).as_posix(): path.stat().st_size for path in model.rglob("*") if path.is_file()}
    return digest_of_text(json.dumps(files, sort_keys=True))[:12]


def measured(comparison: Comparison, folder: str | Path, name: str) -> list[dict[str, str]]:
    """Return the rows of an analysis's file that belong to a comparison's present models; torn rows are left out."""
    folder = Path(folder)
    models = {run.path.resolve(): model_of(run) for run in comparison.runs}
    labels = {run.path.resolve(): row["strategy"] for row, run in zip(comparison.rows, comparison.runs, strict=True)}
    complete = [
        row for row in read_csv(folder / f"{name}.csv") if all(row.get(key) is not None for key in columns_of(name))
    ]
    rows = [(row, (folder / row["run"]).resolve()) for row in complete]
    return [{**row, "strategy": labels[path]} for row, path in rows if models.get(path) == row["model"]]


def relearnt(rows: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """Return the table of relearning: a row for each strategy, order and domain, means over seeds; else None."""
    if not rows:
        return None
    lines = []
    for (strategy, order, domain), own in _grouped(rows, "strategy", "order", "domain").items():
        scores = [number(_mean(own, name)) for name in ("learnt", "before", "untouched")]
        steps = [_steps(own, name) for name in ("steps", "steps_untouched")]
        lines.append([strategy, order, domain, *scores, *steps, number(_mean(own, "savings"), 2)])
    terms = ("optimizer", "rows", "tolerance", "every", "max_steps")
    return {
        "protocol": RELEARNING.format(
            **{name: " or ".join(dict.fromkeys(row[name] for row in rows)) for name in terms}
        ),
        "head": (
            "strategy",
            "order",
            "domain",
            "learnt, as recorded",
            "final model, validation",
            "base model, validation",
            "steps",
            "steps from the base model",
            "savings",
        ),
        "rows": lines,
    }


def knocked_out(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return by (strategy, order) the domains, the parts and the (domains, parts) changes, means over seeds."""
    maps = {}
    for (strategy, order), own in _grouped(rows, "strategy", "order").items():
        domains, parts = (list(dict.fromkeys(row[name] for row in own)) for name in ("domain", "part"))
        cells = _grouped(own, "domain", "part")
        changes = [[_mean(cells.get((domain, part), []), "change") for part in parts] for domain in domains]
        maps[strategy, order] = {"domains": domains, "parts": parts, "changes": changes}
    return maps


def _grouped(rows: Sequence[Mapping[str, str]], *names: str) -> dict[tuple[str, ...], list[Mapping[str, str]]]:
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _mean(rows: Sequence[Mapping[str, str]], name: str) -> float:
    """Return the mean of a column over the rows that have a value; NaN where none has."""
    known = [float(row[name]) for row in rows if row[name] and not math.isnan(float(row[name]))]
    return mean(known) if known else math.nan


def _steps(rows: Sequence[Mapping[str, str]], name: str) -> str:
    """Return the mean steps of the runs that reached the score, and how many did where not all did."""
    reached = sum(not math.isnan(float(row[name])) for row in rows)
    steps = number(_mean(rows, name), 1)
    return steps if reached == len(rows) else f"{steps} ({reached} of {len(rows)} reached it)"
