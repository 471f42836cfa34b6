"""Analyses on demand: finished runs are opened again, asked, and what they said is kept beside the report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.comparison import Comparison
from workbench.components import Component, ConfigError, check_component, instantiate
from workbench.display import Display
from workbench.files import read_csv, to_csv, write_whole
from workbench.on_demand import ANALYSES, columns_of, model_of
from workbench.reopened import Reopened
from workbench.results import RunFolder
from workbench.seeding import untouched_kernels


def built(asked: Mapping[str, Any]) -> list[Any]:
    """The analyses that a report's `key=value` arguments ask for.

    Args:
        asked: By name, true or a mapping of settings.

    Raises:
        ConfigError: A setting is not known, of another type or out of range.
    """
    made, problems = [], []
    for name, settings in asked.items():
        component = Component(ANALYSES[name], settings if isinstance(settings, dict) else {})
        wrong = [] if isinstance(settings, dict | bool) else [f"{name}: expected true or false, got {settings!r}."]
        wrong += check_component(component, name)
        try:
            made += [] if wrong or settings is False else [instantiate(component)]
        except ValueError as error:
            wrong.append(f"{name}: {error}")
        problems += wrong
    if problems:
        raise ConfigError(problems)
    return made


@untouched_kernels()
def analyse(folder: str | Path, comparisons: Sequence[Comparison], analyses: Sequence[Any], display: Display) -> None:
    """Asks every finished run, and writes `relearning.csv` or `knock_out.csv` as it goes.

    What was measured before, with the same settings and on the same model, is kept. The runs' folders stay as they are.

    Args:
        folder: Where the files go.
        comparisons: Of the runs.
        analyses: As `built` gives them.
        display: What a person sees: each result, and each run or domain that is left out, with the reason.
    """
    for analysis in analyses:
        file = Path(folder) / f"{analysis.name}.csv"
        rows = read_csv(file)
        for label, run in [pair for comparison in comparisons for pair in labelled(comparison)]:
            title = f"{analysis.name} of {run.path}"
            display.note(title)
            try:
                named = _name(run, label, file.parent)
                before = [old for old in rows if old["run"] == named["run"]]
                for found in _measured(analysis, run, before, display):
                    place = (str(named["run"]), found[0]["domain"])
                    rows = [old for old in rows if (old["run"], old["domain"]) != place]
                    rows += [_as_text(named | row) for row in found]
                    write_whole(file, to_csv(columns_of(analysis.name), rows))
            except (ValueError, OSError, RuntimeError, ArithmeticError) as error:  # other runs may be whole
                display.note(f"! {title} is left out: {' '.join(str(error).split())}")


def labelled(comparison: Comparison) -> Iterator[tuple[str, RunFolder]]:
    """The finished runs, each with its strategy's name in the comparison."""
    for row, run in zip(comparison.rows, comparison.runs, strict=True):
        yield row["strategy"], run


def _measured(analysis: Any, run: RunFolder, rows: Sequence[Mapping[str, str]], display: Display) -> Iterator[Any]:
    """What an analysis says of a run, domain by domain, but for those that it said before or cannot ask about."""
    opened = Reopened(run)
    problems = {"": opened.problem} if opened.problem else dict(analysis.problems(opened))
    for domain, problem in problems.items():
        display.note(f"! {analysis.name} of {run.path}{domain and f', {domain}'} is left out: {problem}")
    if "" in problems:
        return
    own = {name: str(getattr(analysis, name)) for name in analysis.settings} | {"model": model_of(run)}
    known = {row["domain"] for row in rows if all(row.get(name) == value for name, value in own.items())}
    waiting = [task.name for task in opened.tasks if task.name not in {*known, *problems}]
    if waiting:
        yield from analysis.measure(opened, {*known, *problems}, lambda text: display.note(f"  {text}"))


def _name(run: RunFolder, label: str, folder: Path) -> dict[str, Any]:
    protocol = run.environment()["protocol"]
    return {
        "run": Path(os.path.relpath(run.path.resolve(), folder.resolve())).as_posix(),
        "model": model_of(run),
        "strategy": label,
        "order": protocol["order_name"],
        "seed": protocol["seed"],
    }


def _as_text(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in row.items()}
