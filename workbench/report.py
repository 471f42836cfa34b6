"""Finished folders to tables: everything here is rebuilt from the run folders alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from workbench.components import ConfigError
from workbench.display import compress, duration, number, score_table
from workbench.files import to_csv, write_whole
from workbench.results import RunFolder
from workbench.sweeps import COLUMNS as TRIAL_COLUMNS
from workbench.sweeps import trial_rows

SUMMARY = (
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
)
WIDE = 108
MEASURES = ("OP", "BWT", "FWT", "forgetting", "learning_accuracy", "general_delta")


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


def write_summary(folder: str | Path) -> list[dict[str, Any]]:
    """Writes `summary.csv`, a row for each finished run, and `sweep.csv` where there are trials; returns the rows."""
    rows = [run.summary() for run in find_runs(folder)]
    write_whole(Path(folder) / "summary.csv", to_csv(SUMMARY, ({name: row[name] for name in SUMMARY} for row in rows)))
    if trials := trial_rows(rows):
        write_whole(Path(folder) / "sweep.csv", to_csv(TRIAL_COLUMNS, trials))
    return rows


def sweep_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """The trials of each method, with what they reached, the best one marked.

    Args:
        trials: Of `workbench.sweeps.trial_rows`.
    """
    caption = "chosen: the trial of the highest mean; one with fewer runs than another of its method never is"
    table = Table(title="sweep", title_justify="left", caption=caption, caption_justify="left")
    compress(table)
    for name in TRIAL_COLUMNS:
        table.add_column(name, overflow="fold")
    for trial in trials:
        last = number(trial["mean"]), "chosen" if trial["chosen"] else ""
        table.add_row(*(str(trial[name]) for name in TRIAL_COLUMNS[:-2]), *last)
    return table


def protocol_note(run: RunFolder) -> str:
    """What has to stand beside a run's numbers, in a line: model, data, rows, cuts, decoding, precision."""
    protocol = run.environment()["protocol"]
    rows = sorted({*protocol["training_rows"].values()})
    several = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    return (
        f"{protocol['backbone']}; {protocol['benchmark']}, {len(protocol['order'])} tasks of {several} training rows; "
        f"{_split_note(protocol)}long prompts cut: {protocol['text']['truncation']}; "
        f"template {protocol['text']['template']}; decoding {protocol['decoding']}; precision {protocol['precision']}"
    )


def _split_note(protocol: Mapping[str, Any]) -> str:
    """Says which rows were scored where it is not the test rows: such numbers are for choosing, not for citing."""
    split = protocol.get("scored_on", "test")
    return "" if split == "test" else f"scored on {split} rows; "


def comparison_table(rows: Sequence[dict[str, Any]], title: str, note: str, width: int = WIDE) -> Table:
    """Strategy by measure; a mean over seeds and orders where there are several, with their number.

    Args:
        rows: Of `RunFolder.summary`.
        title: Above the table.
        note: Below it: the protocol.
        width: Characters that it may take; below the usual ones parameters are rounded, and added ones left out.
    """
    told = any(row["task_id_at_test"] for row in rows)
    caption = note + ("\n† is told which task it is tested on: not comparable with the rest" if told else "")
    bounds = {row["strategy"]: row["bound"].replace("_", " ") for row in rows if row.get("bound")}
    if bounds:
        measures = ", ".join(f"{name} by {measure}" for name, measure in bounds.items())
        caption += f"\n‡ a bound, no method of continual learning: {measures}"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    narrow = width < WIDE
    if narrow:
        compress(table)
    table.add_column("strategy", overflow="fold")
    sizes = ("trains",) if narrow else ("trainable", "added")
    for name in (
        "OP",
        "BWT",
        "FWT",
        "forget-\nting" if narrow else "forgetting",
        "learning\naccuracy",
        "general\ndelta",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for name in (*sizes, "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == strategy]
        table.add_row(*_comparison_cells(strategy, own, rounded=narrow))
    return table


def _comparison_cells(strategy: str, own: Sequence[dict[str, Any]], rounded: bool) -> list[str]:
    mark = (" †" if own[0]["task_id_at_test"] else "") + (" ‡" if own[0].get("bound") else "")
    label = f"{strategy}{mark}" if len(own) == 1 else f"{strategy}{mark} (mean of {len(own)})"
    trainable, added = (max(row[name] for row in own) for name in ("trainable_parameters", "added_parameters"))
    sizes = [_rounded(trainable)] if rounded else [f"{trainable:,}", f"{added:,}"]
    seconds = duration(fmean(row["train_seconds"] + row["eval_seconds"] for row in own))
    return [label, *(number(_mean([row[name] for row in own])) for name in MEASURES), *sizes, seconds]


def cost_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What each strategy takes, beside what it reaches: parameters, speed, memory; means over seeds and orders.

    Args:
        rows: Of `RunFolder.summary`.
    """
    caption = (
        "tokens a second: of training without scoring; of the last row's answers with the pass over their prompts,\n"
        "so that short answers look slow; memory in MB, on a CPU of the whole process, what earlier runs left included"
    )
    table = Table(title="costs", title_justify="left", caption=caption, caption_justify="left")
    compress(table)
    table.add_column("strategy", overflow="fold")
    for name in ("trains", "adds", "training\ntokens/s", "decoding\ntokens/s", "peak\nmemory", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == strategy]
        trains, adds = (
            _rounded(max(row[name] for row in own)) for name in ("trainable_parameters", "added_parameters")
        )
        speeds = (_mean([row[f"{kind}_tokens_per_second"] for row in own]) for kind in ("train", "decoded"))
        memory = _mean([row["peak_memory_bytes"] for row in own]) / 1e6
        seconds = _mean([row["train_seconds"] + row["eval_seconds"] for row in own])
        table.add_row(strategy, trains, adds, *(number(value, 0) for value in (*speeds, memory, seconds)))
    return table


def _rounded(count: int) -> str:
    """A count in three digits: 686304 is 686K."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def matrix_table(run: RunFolder, width: int) -> Table:
    """One run's score matrix: a row after each task, a column for each task, probe and corpus.

    Args:
        run: A finished run.
        width: Characters that it may take.
    """
    protocol = run.environment()["protocol"]
    columns = [*protocol["order"], *protocol["probes"], *filter(None, [protocol["general"]])]
    scored: dict[str, list[str]] = {}
    for name in columns:
        scored.setdefault(protocol["primary"][name], []).append(name)
    title = f"{protocol['strategy']}, order {protocol['order_name']}, seed {protocol['seed']}"
    table = score_table(title, columns, width)
    metrics = "; ".join(f"{metric}: {', '.join(on)}" for metric, on in scored.items())
    table.caption = f"{table.caption}\n{_split_note(protocol)}{metrics}"
    majority = protocol.get("majority", {})
    if majority:
        table.caption = f"{table.caption}\nmajority: what the commonest answer alone would score in a domain of labels"
        floors = (majority.get(name, ("", math.nan))[1] for name in columns)
        table.add_row("majority", *(number(value, 2) for value in floors), end_section=True)
    for after in range(len(protocol["order"]) + 1):
        values = [run.value(after, name, protocol["primary"][name]) for name in columns]
        table.add_row(str(after), *(number(value, 2) for value in values))
    return table


def domain_table(runs: Sequence[RunFolder], width: int) -> Table:
    """Each strategy on each domain, right after it was learnt and in the end; means over seeds and orders.

    Args:
        runs: Finished runs of one study.
        width: Characters that the table may take.
    """
    layout = runs[0].environment()["protocol"]
    names = [*layout["order"], *layout["probes"]]
    table = score_table("domain by domain, mean over seeds and orders", names, width)
    legend = str(table.caption).partition("; ")[2]
    meaning = "learnt: right after the domain; end: after the last one"
    table.caption = f"{_split_note(layout)}{meaning}" + (f"; {legend}" if legend else "")
    table.columns[0].justify, table.columns[0].header, table.columns[0].no_wrap = "left", "", False
    measured: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        for row, scores in moments(run).items():
            measured.setdefault(row, []).append(scores)
    majority = layout.get("majority", {})
    measured["majority"] = [{name: majority.get(name, ("", math.nan))[1] for name in names}]
    for row, found in measured.items():
        means = [_mean([scores.get(name, math.nan) for scores in found]) for name in names]
        if not all(map(math.isnan, means)):
            table.add_row(row, *(number(value, 2) for value in means))
    return table


def moments(run: RunFolder) -> dict[str, dict[str, float]]:
    """Primary scores untouched, when a domain was learnt, and in the end; probes and the corpus are never learnt."""
    protocol = run.environment()["protocol"]
    order, primary, strategy = protocol["order"], protocol["primary"], protocol["strategy"]
    tested = [*order, *protocol["probes"], *filter(None, [protocol["general"]])]
    learnt = {name: run.value(after, name, primary[name]) for after, name in enumerate(order, start=1)}
    in_turn = not any(map(math.isnan, learnt.values()))  # where tasks are learnt together, none has a turn
    return {
        "untouched": {name: run.value(0, name, primary[name]) for name in tested},
        f"{strategy}, learnt": learnt if in_turn else {},
        f"{strategy}, end": {name: run.value(len(order), name, primary[name]) for name in tested},
    }


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
