"""Tables of a comparison for a terminal: scores with intervals, differences, costs, domains and sweeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from workbench.formatting import compress, duration, number, rounded, score_table
from workbench.report.comparison import MEASURES, Comparison
from workbench.report.published import PublishedRow, on_these_tasks
from workbench.results import Layout, Protocol, RunFolder
from workbench.statistics import NORMAL, Estimate, mean

WIDE = 108
"""Characters of a terminal below which tables are narrow."""
ONE_LINE = 160
"""Characters of a terminal from which an interval stands beside its mean, and not below it."""
MOST_WARNINGS = 24
"""Sentences of a comparison that a terminal shows; the page has all."""
MATRICES_PRINTED = 12
"""Finished runs up to which a terminal shows the matrix of each."""
TRIAL_COLUMNS = ("method", "trials", "strategy", "runs", "measure", "mean", "chosen")


def tables(comparison: Comparison, width: int) -> Iterator[Table]:
    """Yield the tables of a comparison with a finished run; a sweep has its own (`sweep_tables`)."""
    if comparison.runs:
        yield comparison_table(comparison, width)
        if len(comparison.strategies) > 1:
            yield difference_table(comparison, width)
        yield cost_table(comparison)
        if published := on_these_tasks(comparison):
            yield published_table(published, width)


def sentences(comparison: Comparison) -> list[str]:
    """Return the notes below the tables: why they are apart, unfinished runs, problems, warnings."""
    apart = [f"{comparison.title}: kept apart from the first table ({comparison.apart})."] if comparison.apart else []
    unfinished = [f"{run.path} is not finished: {progress}." for run, progress in comparison.unfinished]
    warnings, more = comparison.warnings[:MOST_WARNINGS], len(comparison.warnings) - MOST_WARNINGS
    if more > 0:
        warnings.append(f"{more} more sentences like these are in report.html.")
    return [*apart, *unfinished, *comparison.problems, *warnings]


def settings_lines(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield the keys in which the rows of all tables differ, then each row's own settings."""
    for differs in dict.fromkeys(tuple(comparison.differs) for comparison in comparisons if comparison.differs):
        yield "What differs between the rows:"
        yield from _first(differs)
    own = {name: text for comparison in comparisons for name, text in comparison.own_settings.items()}
    if len(own) > 1:
        yield "Each row's own settings:"
        yield from _first([f"{name}: {text}" for name, text in own.items()])


def _first(lines: Sequence[str]) -> Iterator[str]:
    """Yield the first lines, indented, and how many more there are."""
    yield from (f"  {line}" for line in lines[:MOST_WARNINGS])
    if len(lines) > MOST_WARNINGS:
        yield f"  {len(lines) - MOST_WARNINGS} more lines like these are in report.html."


def protocol_note(run: RunFolder) -> str:
    """Return the protocol of a run in a line: model, data, rows, truncation, decoding, precision."""
    protocol = run.protocol
    rows = sorted({*protocol.training_rows.values()})
    span = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    return (
        f"{protocol.backbone}; {protocol.benchmark}, {len(protocol.order)} tasks of {span} training rows; "
        f"{split_note(protocol)}{protocol_words(protocol)}long prompts cut: {protocol.text['truncation']}; "
        f"template {protocol.text['template']}; decoding {protocol.decoding}; precision {protocol.precision}"
    )


def protocol_words(protocol: Protocol) -> str:
    """Return in what a run's encoding and optimizer differ from the workbench's default."""
    joint = "prompt and answer tokenised jointly; " if protocol.tokenization == "joint" else ""
    return joint + ("optimizer state carried from task to task; " if protocol.carry_optimizer else "")


def split_note(protocol: Protocol) -> str:
    """Return the split that was scored where it is not the test rows: such numbers are for choosing, not for citing."""
    return "" if protocol.scored_on == "test" else f"scored on {protocol.scored_on} rows; "


def comparison_table(comparison: Comparison, width: int = WIDE) -> Table:
    """Return measures by strategy: a row for each order, means over seeds with intervals; then the orders' mean.

    Args:
        comparison: Comparison with a finished run.
        width: Characters of the terminal; below `WIDE` parameters are rounded, and added ones left out.
    """
    narrow = width < WIDE
    sizes = ("trains",) if narrow else ("trainable", "added")
    table = _measures(comparison.title, narrow, (*sizes, "time"))
    table.caption = "\n".join(_notes(comparison))
    for strategy in comparison.strategies:
        budget = comparison.budget(strategy)
        parameters = [budget[f"{name}_parameters"] for name in ("trainable", "added")]
        shown = [rounded(parameters[0], space="")] if narrow else [f"{round(count):,}" for count in parameters]
        for order in _orders(comparison, strategy):
            cells = [_cell(comparison.estimate(strategy, order, name), width) for name in MEASURES]
            seconds = _seconds(comparison, strategy, order)
            table.add_row(_label(comparison, strategy, order), *cells, *shown, duration(seconds))
    return table


def _orders(comparison: Comparison, strategy: str) -> list[str | None]:
    """Return the orders in which a strategy has runs, and None, the mean over orders, where there are several."""
    orders: list[str | None] = [order for order in comparison.orders if comparison.seeds(strategy, order)]
    return [*orders, None] if len(comparison.orders) > 1 else orders


def _label(comparison: Comparison, strategy: str, order: str | None) -> str:
    bound = strategy in comparison.bounds
    name = strategy + (" ‡" if bound else "") + (" †" if comparison.budget(strategy)["task_id_at_test"] else "")
    if order is None:
        return f"{name}, mean of {len(comparison.orders)} orders"
    where = f", order {order}" if len(comparison.orders) > 1 else ""
    count = len(comparison.seeds(strategy, order))
    return f"{name}{where}" + (f" (mean of {count})" if count > 1 else "")


def _seconds(comparison: Comparison, strategy: str, order: str | None) -> float:
    return mean([row["train_seconds"] + row["eval_seconds"] for row in comparison.rows_of(strategy, order)])


def _notes(comparison: Comparison) -> Iterator[str]:
    yield protocol_note(comparison.runs[0])
    if any(row["task_id_at_test"] for row in comparison.rows):
        yield "† is given the task's identity at test time: not comparable with the other rows"
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
        yield f"OP ± (95 %, finite test sets): {'; '.join(known)}"


def bounds_note(comparison: Comparison) -> str:
    """Return which strategies are bounds, by which measure, and the zero-shot score; "" without a bound."""
    if not comparison.bounds:
        return ""
    measures = ", ".join(f"{name} by {measure.replace('_', ' ')}" for name, measure in comparison.bounds.items())
    return (
        f"‡ a bound, not a method of continual learning: {measures}; "
        f"zero-shot, the model scores {number(comparison.untouched())} on the tasks"
    )


def _pairs(comparison: Comparison) -> list[tuple[str, str]]:
    pairs = [(strategy, order) for strategy in comparison.strategies for order in comparison.orders]
    return [pair for pair in pairs if comparison.seeds(*pair)]


def difference_table(comparison: Comparison, width: int = WIDE) -> Table:
    """Return the difference of each strategy to the baseline, paired over seeds: their common effect cancels.

    Args:
        comparison: Comparison with several strategies.
        width: Characters of the terminal.
    """
    table = _measures(f"Paired difference to {comparison.baseline} (per seed)", width < WIDE, ("seeds",))
    for strategy in comparison.strategies:
        for order in _orders(comparison, strategy) if strategy != comparison.baseline else ():
            differences = [comparison.difference(strategy, comparison.baseline, order, name) for name in MEASURES]
            where = f", order {order}" if order and len(comparison.orders) > 1 else ""
            label = f"{strategy}{where}" if order else f"{strategy}, mean of {len(comparison.orders)} orders"
            seeds = str(differences[0].count) if order else ""
            table.add_row(label, *(_cell(difference, width, sign="+") for difference in differences), seeds)
    return table


def _measures(title: str, narrow: bool, more: tuple[str, ...]) -> Table:
    """Return an empty table with a column for each measure and some more."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    if narrow:
        compress(table)
    table.add_column("strategy", overflow="fold")
    for name in (*(measure.replace("_", "\n") for measure in MEASURES), *more):
        table.add_column("forget-\nting" if narrow and name == "forgetting" else name, justify="right", no_wrap=True)
    return table


def _cell(estimate: Estimate, width: int, sign: str = "") -> str:
    middle = number(estimate.mean) if math.isnan(estimate.mean) else f"{estimate.mean:{sign}.3f}"
    if math.isnan(estimate.half_width):
        return middle
    return f"{middle} ± {estimate.half_width:.3f}" if width >= ONE_LINE else f"{middle}\n±{estimate.half_width:.3f}"


def cost_table(comparison: Comparison) -> Table:
    """Return the costs of each strategy: parameters, work, speed, memory, disk; means over seeds and orders."""
    caption = (
        "train tok/s: without scoring; decode tok/s: answers of the last row, with\n"
        "the pass over their prompts and right answers, so that short answers look\n"
        "slow; peak memory of the run and disk (files of its model) in MB; replay\n"
        "rows: in one pass"
    )
    table = Table(title="Costs", title_justify="left", caption=caption, caption_justify="left")
    compress(table)
    table.add_column("strategy", overflow="fold")
    headings = ("trains", "adds", "steps", "tokens", "replay\nrows", "train\ntok/s", "decode\ntok/s")
    for name in (*headings, "peak\nmem.", "disk", "train\ns", "score\ns"):
        table.add_column(name, justify="right", no_wrap=True)
    for strategy in comparison.strategies:
        rows = comparison.rows_of(strategy)
        budget = comparison.budget(strategy)
        counted = ("trainable_parameters", "added_parameters", "steps", "tokens", "replay_rows")
        counts = [rounded(budget[name], space="") for name in counted]
        speeds = [mean([row[f"{kind}_tokens_per_second"] for row in rows]) for kind in ("train", "decoded")]
        megabytes = [budget[f"{name}_bytes"] / 1e6 for name in ("peak_memory", "disk")]
        seconds = [budget["train_seconds"], budget["eval_seconds"]]
        table.add_row(strategy, *counts, *(number(value, 0) for value in (*speeds, *megabytes, *seconds)))
    return table


def published_table(found: Sequence[Sequence[PublishedRow]], width: int = WIDE) -> Table:
    """Return the numbers that papers report on these tasks; the caption names where protocols differ.

    Args:
        found: Tables from `workbench.report.published.on_these_tasks`.
        width: Characters of the terminal.
    """
    table = _measures("Published for these tasks, under other protocols", width < WIDE, ())
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
    """Return the subject of each difference: "order" of "order: 1 there, 2 here"."""
    return [text.partition(":")[0] for text in differences]


def _cited(source: str) -> str:
    """Return the authors and the year, or the text up to the first comma."""
    return ", ".join(source.split(", ")[:2]) if " et al." in source else source.partition(",")[0]


def sweep_tables(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    """Yield the table of a sweep's trials, over all comparisons: trials may differ in their training budgets."""
    if trials := trial_rows([row for comparison in comparisons for row in comparison.rows]):
        yield sweep_table(trials)


def sweep_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """Return the trials of each method with their means, the best one marked.

    Args:
        trials: Rows from `trial_rows`.
    """
    caption = "chosen: the trial with the highest mean; those with fewer runs than another of their method are left out"
    table = Table(title="Sweep", title_justify="left", caption=caption, caption_justify="left")
    compress(table)
    for name in TRIAL_COLUMNS:
        table.add_column(name, overflow="fold")
    for trial in trials:
        last = number(trial["mean"]), "chosen" if trial["chosen"] else ""
        table.add_row(*(str(trial[name]) for name in TRIAL_COLUMNS[:-2]), *last)
    return table


def matrix_table(run: RunFolder, width: int, strategy: str | None = None) -> Table:
    """Return one run's score matrix: a row after each task, a column for each task, probe and corpus.

    Args:
        run: A finished run.
        width: Characters of the terminal.
        strategy: Name of the strategy in the report; None: as the run states it.
    """
    protocol = run.protocol
    columns = protocol.tested
    scored: dict[str, list[str]] = {}
    for name in columns:
        scored.setdefault(protocol.primary[name], []).append(name)
    title = f"{strategy or protocol.strategy}, order {protocol.order_name}, seed {protocol.seed}"
    table = score_table(title, columns, width)
    metrics = "; ".join(f"{metric}: {', '.join(names)}" for metric, names in scored.items())
    table.caption = f"{table.caption}\n{split_note(protocol)}{metrics}"
    if protocol.majority:
        table.caption = f"{table.caption}\nmajority: score of the most common answer alone, in domains of labels"
        table.add_row("majority", *_two_digits(_majority(protocol, columns)), end_section=True)
    for after in range(len(protocol.order) + 1):
        table.add_row(str(after), *_two_digits(run.value(after, name, protocol.primary[name]) for name in columns))
    return table


def _two_digits(values: Iterable[float]) -> list[str]:
    return [number(value, 2) for value in values]


def _majority(layout: Layout, names: Iterable[str]) -> list[float]:
    """Return the score of the most common answer alone; NaN where answers are no labels."""
    return [layout.majority.get(name, ("", math.nan))[1] for name in names]


def domain_table(runs: Sequence[RunFolder], width: int, strategies: Sequence[str] | None = None) -> Table:
    """Return each strategy's scores on each domain, right after it was learnt and at the end, over seeds and orders.

    Args:
        runs: Finished runs that may stand in one table.
        width: Characters of the terminal.
        strategies: Name of each run's strategy in the report; None: as the runs state it.
    """
    protocol = runs[0].protocol
    names = [*protocol.order, *protocol.probes]
    table = score_table("Scores by domain, mean over seeds and orders", names, width)
    legend = str(table.caption).partition("; ")[2]
    meaning = "learnt: right after the domain; end: after the last one"
    table.caption = f"{split_note(protocol)}{meaning}" + (f"; {legend}" if legend else "")
    table.columns[0].justify, table.columns[0].header, table.columns[0].no_wrap = "left", "", False
    rows: dict[str, list[dict[str, float]]] = {}
    for place, run in enumerate(runs):
        for row, scores in run.moments(strategies[place] if strategies else None).items():
            rows.setdefault(row, []).append(scores)
    means = {row: [mean([scores.get(name, math.nan) for scores in own]) for name in names] for row, own in rows.items()}
    means["majority"] = _majority(protocol, names)
    for row, values in means.items():
        if not all(map(math.isnan, values)):
            table.add_row(row, *_two_digits(values))
    return table


def by_domain(comparisons: Sequence[Comparison], width: int) -> Iterator[Table | str]:
    """Yield the scores by domain: the matrix of each run while they are few, and the means of each comparison.

    Args:
        comparisons: Comparisons of a report.
        width: Characters of the terminal.
    """
    count = sum(len(comparison.runs) for comparison in comparisons)
    for comparison in comparisons:
        names = [str(row["strategy"]) for row in comparison.rows]
        if count <= MATRICES_PRINTED:
            yield from (matrix_table(run, width, name) for run, name in zip(comparison.runs, names, strict=True))
        if len(comparison.runs) > 1:
            yield domain_table(comparison.runs, width, names)
    if count > MATRICES_PRINTED:
        yield f"The score matrices of {count} runs are in report.html, and each in the scores.csv of its run.\n"


def trial_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each trial of a sweep, with the best trial of each method marked.

    The best trial has the highest mean over orders and seeds, of OP, or of the measure that a bound is read by. A trial
    with fewer runs than another of its method, such as one whose loss was not finite, is never chosen.

    Args:
        rows: Rows from `RunFolder.summary`; those that are no trial are skipped.

    Returns:
        Rows of `TRIAL_COLUMNS`.
    """
    methods: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row.get("trial_of"):
            methods.setdefault(row["trial_of"], {}).setdefault(row["strategy"], []).append(row)
    table: list[dict[str, Any]] = []
    for method, trials in methods.items():
        most = max(map(len, trials.values()))
        measures = {name: str(runs[0].get("bound") or "OP") for name, runs in trials.items()}
        means = {name: mean([run[measures[name]] for run in runs]) for name, runs in trials.items()}
        complete = [name for name, runs in trials.items() if len(runs) == most and not math.isnan(means[name])]
        best = max(complete, key=means.__getitem__, default=None)
        for name, runs in trials.items():
            values = (method, len(trials), name, len(runs), measures[name], means[name], name == best)
            table.append(dict(zip(TRIAL_COLUMNS, values, strict=True)))
    return table
