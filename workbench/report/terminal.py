"""A comparison as tables for a terminal: scores with their intervals, differences, and what each strategy takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from workbench.formatting import compress, duration, number, score_table
from workbench.report.comparison import MEASURES, Comparison
from workbench.report.published import PublishedRow, on_these_tasks
from workbench.results import RunFolder
from workbench.results.run_folder import moments
from workbench.statistics import NORMAL, Estimate

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
        found: Of `workbench.report.published.on_these_tasks`.
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
        trials: Of `workbench.report.terminal.trial_rows`.
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


def matrix_table(run: RunFolder, width: int, strategy: str | None = None) -> Table:
    """One run's score matrix: a row after each task, a column for each task, probe and corpus.

    Args:
        run: A finished run.
        width: Characters that it may take.
        strategy: Its name in the report; None: as the run says it.
    """
    protocol = run.environment()["protocol"]
    columns = [*protocol["order"], *protocol["probes"], *filter(None, [protocol["general"]])]
    scored: dict[str, list[str]] = {}
    for name in columns:
        scored.setdefault(protocol["primary"][name], []).append(name)
    title = f"{strategy or protocol['strategy']}, order {protocol['order_name']}, seed {protocol['seed']}"
    table = score_table(title, columns, width)
    metrics = "; ".join(f"{metric}: {', '.join(on)}" for metric, on in scored.items())
    table.caption = f"{table.caption}\n{split_note(protocol)}{metrics}"
    majority = protocol.get("majority", {})
    if majority:
        table.caption = f"{table.caption}\nmajority: what the commonest answer alone would score in a domain of labels"
        floors = (majority.get(name, ("", math.nan))[1] for name in columns)
        table.add_row("majority", *(number(value, 2) for value in floors), end_section=True)
    for after in range(len(protocol["order"]) + 1):
        values = [run.value(after, name, protocol["primary"][name]) for name in columns]
        table.add_row(str(after), *(number(value, 2) for value in values))
    return table


def domain_table(runs: Sequence[RunFolder], width: int, strategies: Sequence[str] | None = None) -> Table:
    """Each strategy on each domain, right after it was learnt and in the end; means over seeds and orders.

    Args:
        runs: Finished runs that may stand in one table.
        width: Characters that the table may take.
        strategies: The name of each run's strategy in the report; None: as the runs say it.
    """
    layout = runs[0].environment()["protocol"]
    names = [*layout["order"], *layout["probes"]]
    table = score_table("domain by domain, mean over seeds and orders", names, width)
    legend = str(table.caption).partition("; ")[2]
    meaning = "learnt: right after the domain; end: after the last one"
    table.caption = f"{split_note(layout)}{meaning}" + (f"; {legend}" if legend else "")
    table.columns[0].justify, table.columns[0].header, table.columns[0].no_wrap = "left", "", False
    measured: dict[str, list[dict[str, float]]] = {}
    for place, run in enumerate(runs):
        for row, scores in moments(run, strategies[place] if strategies else None).items():
            measured.setdefault(row, []).append(scores)
    majority = layout.get("majority", {})
    measured["majority"] = [{name: majority.get(name, ("", math.nan))[1] for name in names}]
    for row, found in measured.items():
        means = [_mean([scores.get(name, math.nan) for scores in found]) for name in names]
        if not all(map(math.isnan, means)):
            table.add_row(row, *(number(value, 2) for value in means))
    return table


def by_domain(comparisons: Sequence[Comparison], width: int) -> Iterator[Table | str]:
    """What a terminal shows domain by domain: the runs' matrices while they are few, and means of each comparison.

    Args:
        comparisons: What is reported.
        width: Characters that a table may take.
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


MATRICES_PRINTED = 12
"""Finished runs up to which a terminal shows the matrix of each."""


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def trial_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a sweep found: a row for each trial, with how many its method had, and which is the best.

    A method's best trial is the one of the highest mean over orders and seeds, of OP, or of what a yardstick is read
    by. A trial with fewer runs than another of its method, such as one whose loss was not finite, is never chosen.

    Args:
        rows: Of `RunFolder.summary`; those of no trial are passed over.

    Returns:
        Rows of `COLUMNS`.
    """
    methods: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row.get("trial_of"):
            methods.setdefault(row["trial_of"], {}).setdefault(row["strategy"], []).append(row)
    found: list[dict[str, Any]] = []
    for method, own in methods.items():
        most = max(map(len, own.values()))
        measures = {name: str(runs[0].get("bound") or "OP") for name, runs in own.items()}
        means = {name: fmean(run[measures[name]] for run in runs) for name, runs in own.items()}
        whole = [name for name, runs in own.items() if len(runs) == most and not math.isnan(means[name])]
        best = max(whole, key=means.__getitem__, default=None)
        for name, runs in own.items():
            counted = {"method": method, "trials": len(own), "strategy": name, "runs": len(runs)}
            found.append(counted | {"measure": measures[name], "mean": means[name], "chosen": name == best})
    return found


COLUMNS = ("method", "trials", "strategy", "runs", "measure", "mean", "chosen")
