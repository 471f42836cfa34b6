"""Write a report: tables, figures and page, rebuilt from the run folders alone."""

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
from workbench.report.terminal import TRIAL_COLUMNS, protocol_note, trial_rows
from workbench.results import RunFolder
from workbench.runtime.files import to_csv, write_whole

LONGEST_NAME = 120
"""Most characters in the name of a report's folder that is formed from those of its studies."""
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
    """Return the finished runs under a study's folder, or the run that the folder is, by path.

    Raises:
        ConfigError: There is none, or one does not state what its scores mean.
    """
    folder = Path(folder)
    configs = sorted(folder.rglob("config.yaml")) if folder.is_dir() else []
    every = [RunFolder(config.parent) for config in configs if (config.parent / "environment.json").is_file()]
    finished = [run for run in every if run.finished]
    for run in finished:
        _check_readable(run)
    if not finished:
        one = "there is 1 run, and it is not finished" if every else "there is no run"
        problem = f"there are {len(every)} runs, none of them finished" if len(every) > 1 else one
        raise ConfigError([f"{folder}: {problem}. Give a study's folder, such as runs/quickstart."])
    return finished


def _check_readable(run: RunFolder) -> None:
    """Raise a ConfigError for a run whose tables cannot be computed."""
    try:
        run.summary(), protocol_note(run), run.moments()
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{run.path}/environment.json does not say what the scores mean ({type(error).__name__}: {error})."
        raise ConfigError([f"{problem} Delete {run.path} to make the run again."]) from error


def destination(folders: Sequence[str | Path], out: str | None = None) -> Path:
    """Return the folder that a report is written to: the study's, or for several folders one that is none of theirs.

    Args:
        folders: Folders that are reported.
        out: Folder that the user named; None: the reported folder if it is the only one, else one beside them all with
            their names, such as runs/a-and-b.

    Raises:
        ConfigError: Another report may be there, or the names are too long for a folder.
    """
    apart = [Path(folder) for folder in folders]
    apart = [path for place, path in enumerate(apart) if not any(_within(path, other) for other in apart[:place])]
    apart = [path for path in apart if not any(_within(path, other) for other in apart if other is not path)]
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


def _within(path: Path, folder: Path) -> bool:
    """Return True if a path is a folder or lies in it."""
    return path.resolve().is_relative_to(folder.resolve())


def _beside(folders: Sequence[Path]) -> Path:
    """Return a folder in the common parent of some folders, with a name formed from theirs."""
    same = len({folder.is_absolute() for folder in folders}) == 1
    paths = [Path(os.path.normpath(folder)) if same else folder.resolve() for folder in folders]
    parent = Path(os.path.commonpath([path.parent for path in paths]))
    return parent / "-and-".join("-".join(path.relative_to(parent).parts) for path in paths)


def write_report(folder: str | Path, comparisons: Sequence[Comparison]) -> list[Path]:
    """Write a report's files into a folder: the page always, the others if there is a finished run.

    Args:
        folder: Folder for `report.html`, `summary.csv`, `table.tex` (one table for each comparison), `references.bib`
            and `figures/`.
        comparisons: Comparisons to report.

    Returns:
        Paths of the files.
    """
    folder = Path(folder)
    tables = _write_tables(folder, comparisons)
    return [*tables, *write_figures(comparisons, folder / "figures", folder), report_page(comparisons, folder)]


def report_trouble(folder: str | Path, comparisons: Sequence[Comparison]) -> str:
    """Write a report as a study ends.

    Returns:
        "", or where anything goes wrong a sentence, because the runs are complete all the same.
    """
    try:
        write_report(folder, comparisons)
    except Exception as error:  # days of training must not end in a traceback of the last second
        return f"The report was not written ({type(error).__name__}: {error}). `lightning report {folder}` tries again."
    return ""


def _write_tables(folder: Path, comparisons: Sequence[Comparison]) -> list[Path]:
    finished = [comparison for comparison in comparisons if comparison.runs]
    if not finished:
        return []
    rows = [{**row, "table": place} for place, each in enumerate(comparisons, start=1) for row in each.rows]
    texts = {
        "summary.csv": to_csv(SUMMARY, ({name: row[name] for name in SUMMARY} for row in rows)),
        "table.tex": "\n".join(map(latex_table, finished)),
        "references.bib": bibtex(*finished),
    }
    if trials := trial_rows(rows):
        texts["sweep.csv"] = to_csv(TRIAL_COLUMNS, trials)
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]
