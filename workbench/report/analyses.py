"""What analyses on demand have left beside a report, read without an engine: relearning and knock-out."""

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
from workbench.report.scores import mean
from workbench.results import RunFolder
from workbench.runtime.files import digest_of_text, read_csv

ANALYSES = {
    "relearning": "workbench.analysis.Relearning",
    "knock_out": "workbench.analysis.KnockOut",
}
PLAIN = ("baseline", "out")
"""Keys of a report that ask for no analysis."""
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
    "the domain was learnt, less {tolerance}; scored every {every} steps, given up after {max_steps}. Savings: "
    "1 - steps / the untouched model's steps to the same score (Ebbinghaus, 1885); 1: nothing had to be learnt again. "
    "The recorded score is of the rows that the study was scored on."
)
KNOCK_OUT = (
    "The change of the primary score where one added block passes its input on, or where one adapter is subtracted "
    "from the weights; nothing is trained. Below 0: the domain needs the part."
)


def requested(settings: Mapping[str, str]) -> dict[str, Any]:
    """Which analyses `key=value` arguments ask for: true, false or a mapping of settings, by name.

    Raises:
        ConfigError: A key is not known, or a value is no YAML.
    """
    known = (*PLAIN, *ANALYSES)
    if unknown := [key for key in settings if key not in known and key.partition(".")[0] not in ANALYSES]:
        raise ConfigError([f"{unknown[0]}: a report has no such key.{did_you_mean(unknown[0], known)}"])
    detailed = {
        key.partition(".")[0] for key in settings if "." in key and settings.get(key.partition(".")[0]) == "true"
    }
    return arguments([f"{key}={value}" for key, value in settings.items() if key not in {*PLAIN, *detailed}])


def columns_of(name: str) -> tuple[str, ...]:
    """The columns of an analysis' file."""
    return NAMED + COLUMNS[name]


def model_of(run: RunFolder) -> str:
    """A fingerprint of a run's final model, so that a run that was made again is asked again.

    Of the checksums that the journal has; in folders without a journal, of its files' sizes.
    """
    known: dict[str, Any] = dict(run.records.model or {})
    if not known:
        model = run.path / "model"
        known = {path.relative_to(model).as_posix(): path.stat().st_size for path in model.rglob("*") if path.is_file()}
    return digest_of_text(json.dumps(known, sort_keys=True))[:12]


def measured(comparison: Comparison, folder: str | Path, name: str) -> list[dict[str, str]]:
    """The rows of an analysis' file that are about a comparison's runs as they are now; torn rows are left out."""
    folder = Path(folder)
    models = {run.path.resolve(): model_of(run) for run in comparison.runs}
    labels = {run.path.resolve(): row["strategy"] for row, run in zip(comparison.rows, comparison.runs, strict=True)}
    whole = [
        row for row in read_csv(folder / f"{name}.csv") if all(row.get(key) is not None for key in columns_of(name))
    ]
    rows = [(row, (folder / row["run"]).resolve()) for row in whole]
    return [{**row, "strategy": labels[path]} for row, path in rows if models.get(path) == row["model"]]


def relearnt(rows: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """The table of relearning: a line for each strategy, order and domain, means over seeds; None without rows."""
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
            "untouched model, validation",
            "steps",
            "steps from untouched",
            "savings",
        ),
        "rows": lines,
    }


def knocked_out(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """By strategy and order the domains, the parts and the (domains, parts) changes, means over seeds."""
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
    """The mean of what is known of a column; NaN where nothing is."""
    known = [float(row[name]) for row in rows if row[name] and not math.isnan(float(row[name]))]
    return mean(known) if known else math.nan


def _steps(rows: Sequence[Mapping[str, str]], name: str) -> str:
    """Mean steps of the runs that came there, and how many did where not all did."""
    reached = sum(not math.isnan(float(row[name])) for row in rows)
    steps = number(_mean(rows, name), 1)
    return steps if reached == len(rows) else f"{steps} ({reached} of {len(rows)} reached it)"
