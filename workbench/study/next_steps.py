"""What to do with a finished study: three commands that can be pasted into a shell."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from workbench.report import Comparison
from workbench.study.study import Study

PROGRAMS = ("lightning", "workbench")
"""Names that the program answers to."""
OPENERS = ("xdg-open", "open")
ENOUGH_SEEDS = (0, 1, 2)
"""With three seeds there are intervals."""


def next_steps(config: str, overrides: Sequence[str], study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    """Return lines to print at a study's end: how to open the report, look further, and learn more.

    Args:
        config: Path or shipped name, as it was given.
        overrides: As they were given.
        study: Some of its runs are finished.
        comparisons: Of its report.
    """
    folder, program = study.folder.resolve(), _program()
    lines = [("Read the report", _opening(folder / "report.html"))]
    lines.append(_further(folder, program, [row for comparison in comparisons for row in comparison.rows]))
    if len(study.config.seeds) < len(ENOUGH_SEEDS):
        again = [text for text in overrides if text.partition("=")[0] not in ("seeds", "output", "name")]
        seeds = f"seeds={[*dict.fromkeys([*study.config.seeds, *ENOUGH_SEEDS])][: len(ENOUGH_SEEDS)]}"
        source = str(Path(config).resolve()) if Path(config).is_file() else config
        places = [f"name={study.config.name}", f"output={folder.parent}", seeds]
        lines.append(("Add seeds, for intervals; finished runs are kept", [*program, "run", source, *again, *places]))
    else:
        run = next(run for run in study.runs if study.results(run).finished)
        out = folder.parent / f"{folder.name}-{run.strategy}-model"
        lines.append(
            ("Write a model for plain transformers", [*program, "export", str(run.folder.resolve()), str(out)])
        )
    return ["Next:", *(f"  {shlex.join(command)}  # {what}" for what, command in lines)]


def _further(folder: Path, program: list[str], rows: Sequence[dict[str, object]]) -> tuple[str, list[str]]:
    """Return a report against the best of several strategies; of a single one, a report on relearning.

    The best one has the highest mean OP over its runs. Runs without one are left out.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        if not math.isnan(value := float(str(row["OP"]))):
            values.setdefault(str(row["strategy"]), []).append(value)
    if values and len({row["strategy"] for row in rows}) > 1:
        best = max(values, key=lambda name: fmean(values[name]))
        command = [*program, "report", str(folder), f"baseline={best}"]
        return "Compare all with the strategy that has the highest OP", command
    return "See how soon what was forgotten is learnt again", [*program, "report", str(folder), "relearning=true"]


def _program() -> list[str]:
    """Return how this program was called."""
    name = Path(sys.argv[0]).name
    return [name] if name in PROGRAMS and shutil.which(name) else [sys.executable, "-m", "workbench"]


def _opening(page: Path) -> list[str]:
    """Return a command that opens a page in a browser, or, on a system without one, names the file."""
    opener = next(filter(shutil.which, OPENERS), None)
    return [opener, str(page)] if opener else [sys.executable, "-m", "webbrowser", page.as_uri()]
