"""Write the report page: one HTML file that needs no network and no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from workbench.report import sections
from workbench.report.comparison import BUDGET, MEASURES, Comparison
from workbench.report.scores import View
from workbench.report.terminal import bounds_note
from workbench.results import Protocol, RunFolder
from workbench.runtime.files import write_whole
from workbench.statistics import Estimate

CONTENTS = {
    "compared": "Comparison",
    "published": "Published numbers",
    "tradeoff": "Stability and plasticity",
    "matrices": "Score matrices",
    "domains": "Domains over time",
    "probes": "Probes over time",
    "losses": "Format or knowledge",
    "answers": "Example answers",
    "relearning": "Relearning",
    "knock-out": "Knock-out",
    "unfinished": "Unfinished runs",
    "protocol": "Protocol",
}
"""Headings by the end of the section's id, in the page's order."""
TEXT_POLICY = ("template", "tokenization", "truncation", "max_length", "max_prompt_length", "max_answer_length")


def report_page(comparisons: Sequence[Comparison], folder: str | Path) -> Path:
    """Write `report.html`.

    Everything that comes from a run is escaped: a model may answer with HTML.

    Args:
        comparisons: Each becomes a part of the page.
        folder: Where the page is written.

    Returns:
        The page's path.
    """
    environment = Environment(
        loader=PackageLoader("workbench", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        title=", ".join(comparison.title for comparison in comparisons) or "no runs",
        style=Markup(_source(environment, "style.css")),
        script=Markup(_source(environment, "report.js")),
        version=version(),
        measures=MEASURES,
        budget=BUDGET,
        parts=[part(comparison, f"c{place}", folder) for place, comparison in enumerate(comparisons, start=1)],
    )
    path = Path(folder) / "report.html"
    write_whole(path, text)
    return path


def _source(environment: Environment, name: str) -> str:
    return environment.loader.get_source(environment, name)[0] if environment.loader else ""


def version() -> str:
    """Return the version of the installed distribution, or "source checkout" where none is installed."""
    try:
        return metadata.version("continual-workbench")
    except metadata.PackageNotFoundError:
        return "(source checkout)"


def part(comparison: Comparison, name: str, folder: str | Path) -> dict[str, Any]:
    """Return what the page shows of one comparison.

    Args:
        comparison: Of runs whose numbers are comparable.
        name: Prefix of the ids in this part of the page.
        folder: Of the report, where an analysis may have written its results.
    """
    view = View(comparison)
    baseline = comparison.baseline or None
    content = {
        "id": name,
        "title": comparison.title,
        "suffix": "" if name == "c1" else f", table {name[1:]}",
        "lead": lead(comparison),
        "apart": comparison.apart,
        "differs": comparison.differs,
        "own_settings": comparison.own_settings,
        "warnings": comparison.warnings,
        "problems": comparison.problems,
        "unfinished": sections.unfinished(comparison),
        "legend": sections.legend(view, f"{name}-legend"),
        "strategies": view.strategies,
        "scores": sections.score_tables(view),
        "bounds": comparison.bounds,
        "bounds_note": bounds_note(comparison),
        "zero_shot": sections.estimate_text(Estimate(comparison.untouched(), math.nan, 0))["text"],
        "sampling_error": sections.sampling_error(view),
        "published": sections.published(view),
        "budgets": sections.budgets(view),
        "baseline": baseline,
        "differences": sections.differences(view, baseline),
        "matrices": sections.matrices(view),
        "tradeoff": sections.tradeoff(view, f"{name}-tradeoff-figure"),
        "domains": sections.over_time(view, f"{name}-domain", probes=False),
        "probes": sections.over_time(view, f"{name}-probe", probes=True),
        "losses": sections.losses(view, f"{name}-loss"),
        "answers": [(task, view.asked(task)) for task in (view.tasks(view.orders[0]) if view.orders else [])],
        "on_demand": sections.on_demand(comparison, folder, f"{name}-knock-out"),
        "protocol": protocol(comparison),
        "tasks": tasks(comparison),
        "references": comparison.references,
        "seeds": {
            strategy: {order: comparison.seeds(strategy, order) for order in view.orders}
            for strategy in view.strategies
        },
        "configs": configs(view),
    }
    return {**content, "contents": contents(content)}


def contents(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the sections of a part of the page: heading by the end of its id."""
    optional = {"published": content["published"], "unfinished": any(run["matrix"] for run in content["unfinished"])}
    optional |= {"relearning": content["on_demand"]["relearning"], "knock-out": content["on_demand"]["maps"]}
    return {name: heading for name, heading in CONTENTS.items() if optional.get(name, True)}


def first_protocol(comparison: Comparison) -> Protocol:
    """Return the protocol of the first run; tasks and probes are the same in all."""
    return every_run(comparison)[0].protocol


def every_run(comparison: Comparison) -> list[RunFolder]:
    """Return the finished runs, then the unfinished ones."""
    return [*comparison.runs, *(run for run, _ in comparison.unfinished)]


def lead(comparison: Comparison) -> str:
    """Return the page's first sentences: what was run on which benchmark and model."""
    count, known = sections.count_of, first_protocol(comparison)
    setting = f"Benchmark: {known.benchmark}, {count(len(known.order), 'domain')}. Model: {known.backbone}."
    if not comparison.runs:
        return f"No run is finished yet. {setting}"
    seeds = {
        seed for name in comparison.strategies for order in comparison.orders for seed in comparison.seeds(name, order)
    }
    sizes = (
        count(len(comparison.strategies), "strategy", "strategies"),
        count(len(comparison.orders), "order"),
        count(len(seeds), "seed"),
    )
    return f"{', '.join(sizes)}: {count(len(comparison.runs), 'finished run')}. {setting}"


def protocol(comparison: Comparison) -> dict[str, str]:
    """Return how the runs were trained and measured, by label; where runs differ, all values."""
    known, text = comparison.protocol, comparison.protocol.get("text", {})
    environments = [run.environment() for run in every_run(comparison)]

    def values_of(section: str) -> str:
        values = {str(entry[section]): entry[section] for entry in environments if entry.get(section)}
        return "; or ".join(map(in_words, values.values()))

    def in_words(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {part}" for name, part in value.items() if part)
        return str(value)

    labels = {
        "model": known.get("backbone"),
        "benchmark": known.get("benchmark"),
        "notes": known.get("benchmark_notes"),
        "scored on": f"{known.get('scored_on', 'test')} rows",
        "decoding": known.get("decoding"),
        "precision": known.get("precision"),
        "weights": known.get("dtype"),
        "text": ", ".join(
            f"{name.replace('_', ' ')} {text[name]}" for name in TEXT_POLICY if text.get(name) is not None
        ),
        "processes": known.get("processes"),
        **{section: values_of(section) for section in ("hardware", "versions", "commit", "inputs")},
    }
    return {label: str(value) for label, value in labels.items() if value}


def tasks(comparison: Comparison) -> list[dict[str, Any]]:
    """Return rows, metric and majority baseline of each domain and probe."""
    known = first_protocol(comparison)
    kinds = dict.fromkeys(known.order, "domain") | dict.fromkeys(known.probes, "probe")
    return [
        {
            "name": name,
            "kind": kinds.get(name, "general text"),
            "training": known.training_rows.get(name, "–"),
            "test": known.test_rows.get(name, "–"),
            "metric": known.primary[name],
            "majority": "{1:.2f} ({0})".format(*known.majority[name]) if name in known.majority else "–",
        }
        for name in known.tested
    ]


def configs(view: View) -> dict[str, str]:
    """Return the config of each strategy's first run."""
    texts = {}
    for strategy in view.strategies:
        file = view.first_run(strategy)[0].path / "config.yaml"
        texts[strategy] = file.read_text(encoding="utf-8") if file.is_file() else "config.yaml is missing."
    return texts
