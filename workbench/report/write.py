"""Finished folders to tables: everything here is rebuilt from the run folders alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import ConfigError
from workbench.report.comparison import Comparison
from workbench.report.figures import write_figures
from workbench.report.latex import bibtex, latex_table
from workbench.report.page import report_page
from workbench.report.runs import run_paths
from workbench.report.terminal import COLUMNS as TRIAL_COLUMNS
from workbench.report.terminal import protocol_note, trial_rows
from workbench.results import RunFolder
from workbench.results.run_folder import moments
from workbench.runtime.files import to_csv, write_whole

LONGEST_NAME = 120
"""Characters of a report's folder that is named after what it reports."""
SUMMARY = (  # the first ones are what others rely on; new ones come last
    "strategy",
    "order",
    "seed",
    "OP",
    "BWT",
    "FWT",
    "forgetting",
    "learning_accuracy",
    "general_delta",
    "trainable_parameters",
    "added_parameters",
    "train_seconds",
    "eval_seconds",
    "peak_memory_bytes",
    "train_tokens_per_second",
    "decoded_tokens_per_second",
    "steps",
    "tokens",
    "replay_rows",
    "disk_bytes",
    "task_id_at_test",
    "OP_error",
    "table",
)


def find_runs(folder: str | Path) -> list[RunFolder]:
    """The runs under a study's folder (or the run itself) that came to their end, by path.

    Raises:
        ConfigError: There is none, or one does not say what its scores mean.
    """
    folder = Path(folder)
    configs = sorted(folder.rglob("config.yaml")) if folder.is_dir() else []
    found = [RunFolder(config.parent) for config in configs if (config.parent / "environment.json").is_file()]
    runs = [run for run in found if run.finished]
    for run in runs:
        _check_readable(run)
    if not runs:
        few = "there is 1 run, and it is not finished" if found else "there is no run"
        what = f"there are {len(found)} runs, none of them finished" if len(found) > 1 else few
        raise ConfigError([f"{folder}: {what}. Give a study's folder, such as runs/quickstart."])
    return runs


def _check_readable(run: RunFolder) -> None:
    """Refuses a run whose tables could not be made."""
    try:
        run.summary(), protocol_note(run), moments(run)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        told = f"{run.path}/environment.json does not say what the scores mean ({type(error).__name__}: {error})."
        raise ConfigError([f"{told} Delete {run.path} to make the run again."]) from error


def destination(folders: Sequence[str | Path], out: str | None = None) -> Path:
    """The folder of a report: that of the study, or where several are reported one that is none of theirs.

    Args:
        folders: What is reported.
        out: What was asked for; None: the folder itself if it is the only one, else one beside them all that has their
            names, such as runs/a-and-b.

    Raises:
        ConfigError: A report of something else may be there, or the names are too long for a folder.
    """
    apart = [Path(folder) for folder in folders]
    apart = [one for place, one in enumerate(apart) if not any(_within(one, other) for other in apart[:place])]
    apart = [one for one in apart if not any(_within(one, other) for other in apart if other is not one)]
    if out is None and len(apart) == 1:
        return apart[0]
    chosen = Path(out) if out else _beside(apart)
    example = "Give a folder of its own, such as out=runs/report."
    if not out and len(chosen.name) > LONGEST_NAME:
        raise ConfigError([f"report: {len(apart)} folders need a folder for their report. {example}"])
    if chosen.exists() and not chosen.is_dir():
        raise ConfigError([f"out: {chosen} is no folder. {example}"])
    if next(run_paths(chosen), None) and not (len(apart) == 1 and chosen.resolve() == apart[0].resolve()):
        raise ConfigError([f"out: in {chosen} there are runs, whose own report would be overwritten. {example}"])
    return chosen


def _within(one: Path, other: Path) -> bool:
    """Whether a folder is another one or lies in it."""
    return one.resolve().is_relative_to(other.resolve())


def _beside(folders: Sequence[Path]) -> Path:
    """Where all folders lie, a name that is made of theirs."""
    same = len({folder.is_absolute() for folder in folders}) == 1
    paths = [Path(os.path.normpath(folder)) if same else folder.resolve() for folder in folders]
    parent = Path(os.path.commonpath([path.parent for path in paths]))
    return parent / "-and-".join("-".join(path.relative_to(parent).parts) for path in paths)


def write_report(folder: str | Path, comparisons: Sequence[Comparison]) -> list[Path]:
    """Writes a report's files into a folder: the page always, the others as far as there is a finished run.

    Args:
        folder: Where they go: `report.html`, `summary.csv`, `table.tex` (one table for each comparison),
            `references.bib`, and `figures/`.
        comparisons: What is reported, from run folders alone.

    Returns:
        The files.
    """
    folder = Path(folder)
    tables = _write_tables(folder, comparisons)
    return [*tables, *write_figures(comparisons, folder / "figures", folder), report_page(comparisons, folder)]


def report_trouble(folder: str | Path, comparisons: Sequence[Comparison]) -> str:
    """As `write_report` where a study ends: whatever goes wrong is told in a sentence, for the runs are whole."""
    try:
        write_report(folder, comparisons)
    except Exception as error:  # days of training must not end in a traceback of the last second
        return f"The report was not written ({type(error).__name__}: {error}). `lightning report {folder}` tries again."
    return ""


def _write_tables(folder: Path, comparisons: Sequence[Comparison]) -> list[Path]:
    told = [comparison for comparison in comparisons if comparison.runs]
    if not told:
        return []
    rows = [{**row, "table": place} for place, one in enumerate(comparisons, start=1) for row in one.rows]
    texts = {
        "summary.csv": to_csv(SUMMARY, ({name: row[name] for name in SUMMARY} for row in rows)),
        "table.tex": "\n".join(map(latex_table, told)),
        "references.bib": bibtex(*told),
    }
    if trials := trial_rows(rows):
        texts["sweep.csv"] = to_csv(TRIAL_COLUMNS, trials)
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]
