"""A comparison as tables for a terminal: scores with their intervals, differences, and what each strategy takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from workbench.comparison import MEASURES, Comparison
from workbench.display import compress, duration, number
from workbench.published import PublishedRow, on_these_tasks
from workbench.results import RunFolder
from workbench.statistics import NORMAL, Estimate
from workbench.sweeps import COLUMNS, trial_rows

WIDE = 108
MOST_WARNINGS = 24
"""Sentences of a comparison that a terminal shows; the page has all."""
ONE_LINE = 160
"""Characters from which an interval stands beside its mean, and not below it."""
HEADINGS = ("OP", "BWT", "FWT", "forgetting", "learning\naccuracy", "general\ndelta")


def tables(comparison: Comparison, width: int) -> Iterator[Table]:
    """All tables of a comparison that there is a finished run for, but for what a sweep found (`sweep_tables`)."""
    if comparison.runs:
        yield comparison_table(comparison, width)
        if len(comparison.strategies) > 1:
            yield difference_table(comparison, width)
        yield cost_table(comparison)
        if found := on_these_tasks(comparison):
            yield published_table(found, width)


def sentences(comparison: Comparison) -> list[str]:
    """What stands beneath the tables: why they stand apart, runs on their way, what was wrong, warnings."""
    apart = [f"{comparison.title}: kept apart from the first table ({comparison.apart})."] if comparison.apart else []
    unfinished = [f"{run.path} is not finished: {far}." for run, far in comparison.unfinished]
    told = comparison.warnings
    if len(told) > MOST_WARNINGS:
        told = [*told[:MOST_WARNINGS], f"{len(told) - MOST_WARNINGS} more sentences like these are in report.html."]
    return [*apart, *unfinished, *comparison.problems, *told]


def settings_lines(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What the rows of all tables were made with: the keys in which they differ, then each row's own settings."""
    for differs in dict.fromkeys(tuple(comparison.differs) for comparison in comparisons if comparison.differs):
        yield "What differs between the rows:"
        yield from _first(differs)
    own = {name: text for comparison in comparisons for name, text in comparison.own_settings.items()}
    if len(own) > 1:
        yield "Each row's own settings:"
        yield from _first([f"{name}: {text}" for name, text in own.items()])


def _first(lines: Sequence[str]) -> Iterator[str]:
    """The lines that a terminal shows."""
    yield from (f"  {line}" for line in lines[:MOST_WARNINGS])
    if len(lines) > MOST_WARNINGS:
        yield f"  {len(lines) - MOST_WARNINGS} more lines like these are in report.html."


def protocol_note(run: RunFolder) -> str:
    """What has to stand beside a run's numbers, in a line: model, data, rows, cuts, decoding, precision."""
    protocol = run.environment()["protocol"]
    rows = sorted({*protocol["training_rows"].values()})
    several = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    return (
        f"{protocol['backbone']}; {protocol['benchmark']}, {len(protocol['order'])} tasks of {several} training rows; "
        f"{split_note(protocol)}{protocol_words(protocol)}long prompts cut: {protocol['text']['truncation']}; "
        f"template {protocol['text']['template']}; decoding {protocol['decoding']}; precision {protocol['precision']}"
    )


def protocol_words(protocol: Mapping[str, Any]) -> str:
    """Say in what a run's encoding and optimizer are not the workbench's default."""
    joint = protocol["text"].get("tokenization") == "joint"
    carried = protocol.get("carry_optimizer", False)
    said = ["prompt and answer tokenised jointly"] * joint + ["optimizer state carried from task to task"] * carried
    return "".join(f"{words}; " for words in said)


def split_note(protocol: Mapping[str, Any]) -> str:
    """Says which rows were scored where it is not the test rows: such numbers are for choosing, not for citing."""
    split = protocol.get("scored_on", "test")
    return "" if split == "test" else f"scored on {split} rows; "


def comparison_table(comparison: Comparison, width: int = WIDE) -> Table:
    """Strategy by measure: a row for each order, means over seeds with their intervals; then the orders' mean.

    Args:
        comparison: With a finished run.
        width: Characters that it may take; below the usual ones parameters are rounded, and added ones left out.
    """
    narrow = width < WIDE
    sizes = ("trains",) if narrow else ("trainable", "added")
    table = _measures(comparison.title, narrow, (*sizes, "time"))
    table.caption = "\n".join(_notes(comparison))
    for strategy in comparison.strategies:
        budget = comparison.budget(strategy)
        parameters = [budget[f"{name}_parameters"] for name in ("trainable", "added")]
        shown = [_rounded(parameters[0])] if narrow else [f"{round(count):,}" for count in parameters]
        for order in _orders(comparison, strategy):
            cells = [_cell(comparison.estimate(strategy, order, name), width) for name in MEASURES]
            seconds = _seconds(comparison, strategy, order)
            table.add_row(_label(comparison, strategy, order), *cells, *shown, duration(seconds))
    return table


def _orders(comparison: Comparison, strategy: str) -> list[str | None]:
    """The orders that a strategy has met; None, their mean, where there are several."""
    own: list[str | None] = [order for order in comparison.orders if comparison.seeds(strategy, order)]
    return [*own, None] if len(comparison.orders) > 1 else own


def _label(comparison: Comparison, strategy: str, order: str | None) -> str:
    bound = strategy in comparison.bounds
    name = strategy + (" ‡" if bound else "") + (" †" if comparison.budget(strategy)["task_id_at_test"] else "")
    if order is None:
        return f"{name}, mean of {len(comparison.orders)} orders"
    where = f", order {order}" if len(comparison.orders) > 1 else ""
    count = len(comparison.seeds(strategy, order))
    return f"{name}{where}" + (f" (mean of {count})" if count > 1 else "")


def _seconds(comparison: Comparison, strategy: str, order: str | None) -> float:
    rows = comparison.rows_of(strategy, order)
    return fmean(row["train_seconds"] + row["eval_seconds"] for row in rows)


def _notes(comparison: Comparison) -> Iterator[str]:
    yield protocol_note(comparison.runs[0])
    if any(row["task_id_at_test"] for row in comparison.rows):
        yield "† is told which task it is tested on: not comparable with the rest"
    if comparison.bounds:
        yield bounds_note(comparison)
    estimates = [comparison.estimate(name, order, "OP") for name, order in _pairs(comparison)]
    if any(not math.isnan(estimate.half_width) for estimate in estimates):
        yield "±: 95 % t interval over seeds"
    errors = {
        f"{name}, order {order}" if len(comparison.orders) > 1 else name: comparison.test_error(name, order)
        for name, order in _pairs(comparison)
    }
    known = [f"{name} {NORMAL * error:.3f}" for name, error in errors.items() if not math.isnan(error)]
    if known:
        yield f"the finite test sets leave OP open by ±: {'; '.join(known)}"


def bounds_note(comparison: Comparison) -> str:
    """Which strategies are yardsticks, by which measure, and where all began; empty where none is one."""
    if not comparison.bounds:
        return ""
    measures = ", ".join(f"{name} by {measure.replace('_', ' ')}" for name, measure in comparison.bounds.items())
    return (
        f"‡ a bound, no method of continual learning: {measures}; "
        f"the untouched model scores {number(comparison.untouched())} on the tasks"
    )


def _pairs(comparison: Comparison) -> list[tuple[str, str]]:
    pairs = [(strategy, order) for strategy in comparison.strategies for order in comparison.orders]
    return [pair for pair in pairs if comparison.seeds(*pair)]


def difference_table(comparison: Comparison, width: int = WIDE) -> Table:
    """Each strategy less the baseline, seed by seed: what the seeds do to both alike goes out of it.

    Args:
        comparison: With several strategies.
        width: Characters that it may take.
    """
    table = _measures(f"less {comparison.baseline}, seed by seed", width < WIDE, ("seeds",))
    for strategy in comparison.strategies:
        for order in _orders(comparison, strategy) if strategy != comparison.baseline else ():
            told = [comparison.difference(strategy, comparison.baseline, order, name) for name in MEASURES]
            where = f", order {order}" if order and len(comparison.orders) > 1 else ""
            label = f"{strategy}{where}" if order else f"{strategy}, mean of {len(comparison.orders)} orders"
            seeds = str(told[0].count) if order else ""
            table.add_row(label, *(_cell(one, width, sign="+") for one in told), seeds)
    return table


def _measures(title: str, narrow: bool, more: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    if narrow:
        compress(table)
    table.add_column("strategy", overflow="fold")
    for name in (*HEADINGS, *more):
        table.add_column("forget-\nting" if narrow and name == "forgetting" else name, justify="right", no_wrap=True)
    return table


def _cell(estimate: Estimate, width: int, sign: str = "") -> str:
    mean = number(estimate.mean) if math.isnan(estimate.mean) else f"{estimate.mean:{sign}.3f}"
    if math.isnan(estimate.half_width):
        return mean
    return f"{mean} ± {estimate.half_width:.3f}" if width >= ONE_LINE else f"{mean}\n±{estimate.half_width:.3f}"


def cost_table(comparison: Comparison) -> Table:
    """What each strategy takes, beside what it reaches: parameters, work, speed, room; means over seeds and orders."""
    caption = (
        "tok/s: of training without scoring; of the last row's answers with the\n"
        "pass over their prompts, so that short answers look slow; peak memory of\n"
        "the run alone and disk (its model's files) in MB; replay: rows of one pass"
    )
    table = Table(title="costs", title_justify="left", caption=caption, caption_justify="left")
    compress(table)
    table.add_column("strategy", overflow="fold")
    headings = ("trains", "adds", "steps", "tokens", "replay\nrows", "train\ntok/s", "decode\ntok/s")
    for name in (*headings, "peak\nmem.", "disk", "train\ns", "score\ns"):
        table.add_column(name, justify="right", no_wrap=True)
    for strategy in comparison.strategies:
        own = comparison.rows_of(strategy)
        spent = comparison.budget(strategy)
        counted = ("trainable_parameters", "added_parameters", "steps", "tokens", "replay_rows")
        counts = [_rounded(spent[name]) for name in counted]
        speeds = [fmean(row[f"{kind}_tokens_per_second"] for row in own) for kind in ("train", "decoded")]
        room = [spent[f"{name}_bytes"] / 1e6 for name in ("peak_memory", "disk")]
        seconds = [spent["train_seconds"], spent["eval_seconds"]]
        table.add_row(strategy, *counts, *(number(value, 0) for value in (*speeds, *room, *seconds)))
    return table


def published_table(found: Sequence[Sequence[PublishedRow]], width: int = WIDE) -> Table:
    """What papers print for these tasks, and in what their protocols differ; the page says it in full.

    Args:
        found: Of `workbench.published.on_these_tasks`.
        width: Characters that it may take.
    """
    table = _measures("published for these tasks, under other protocols", width < WIDE, ())
    table.caption = "\n".join(
        f"{rows[0].source}: other or unstated {', '.join(_subjects(rows[0].differences))}"
        for rows in found
        if rows[0].differences
    )
    for rows in found:
        for place, row in enumerate(rows, start=1):
            cells = [number(row.values.get(name, math.nan)) for name in MEASURES]
            table.add_row(f"{row.strategy} ({_cited(row.source)})", *cells, end_section=place == len(rows))
    return table


def _subjects(differences: Sequence[str]) -> list[str]:
    """What differs, without how."""
    return [text.partition(":")[0] for text in differences]


def _cited(source: str) -> str:
    """The authors and the year, or as far as the first comma."""
    return ", ".join(source.split(", ")[:2]) if " et al." in source else source.partition(",")[0]


def sweep_tables(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    """What a sweep found, over all tables: trials of different training budgets stand in tables of their own."""
    if trials := trial_rows([row for comparison in comparisons for row in comparison.rows]):
        yield sweep_table(trials)


def sweep_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """The trials of each method, with what they reached, the best one marked.

    Args:
        trials: Of `workbench.sweeps.trial_rows`.
    """
    caption = "chosen: the trial of the highest mean; one with fewer runs than another of its method never is"
    table = Table(title="sweep", title_justify="left", caption=caption, caption_justify="left")
    compress(table)
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for trial in trials:
        last = number(trial["mean"]), "chosen" if trial["chosen"] else ""
        table.add_row(*(str(trial[name]) for name in COLUMNS[:-2]), *last)
    return table


def _rounded(count: float) -> str:
    """A count in three digits: 686304 is 686K."""
    if math.isnan(count):
        return number(count)
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.4g}"
