"""One HTML page that holds a whole report: no network, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from workbench import __version__
from workbench.report import sections
from workbench.report import sections as drawn
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
    "domains": "Domains",
    "probes": "Probes",
    "losses": "Format or knowledge",
    "answers": "Answers",
    "relearning": "Learning again",
    "knock-out": "Added parts",
    "unfinished": "Unfinished runs",
    "protocol": "Protocol",
}
TEXTS = ("template", "tokenization", "truncation", "max_length", "max_prompt_length", "max_answer_length")


def report_page(comparisons: Sequence[Comparison], folder: str | Path) -> Path:
    """Writes `report.html`, which opens offline and holds all that a reader needs.

    Everything that comes from a run is escaped: a model may answer with HTML.

    Args:
        comparisons: Each gets a part of its own.
        folder: Where the page is written.

    Returns:
        The page's path.
    """
    made = Environment(
        loader=PackageLoader("workbench", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = made.get_template("report.html.j2").render(
        title=", ".join(comparison.title for comparison in comparisons) or "no runs",
        style=Markup(_part(made, "style.css") + heat_style()),
        script=Markup(_part(made, "report.js")),
        version=__version__,
        measures=MEASURES,
        budget=BUDGET,
        parts=[part(comparison, f"c{place}", folder) for place, comparison in enumerate(comparisons, start=1)],
    )
    path = Path(folder) / "report.html"
    write_whole(path, text)
    return path


def _part(made: Environment, name: str) -> str:
    return made.loader.get_source(made, name)[0] if made.loader else ""


def part(comparison: Comparison, name: str, folder: str | Path) -> dict[str, Any]:
    """What the page shows of one comparison.

    Args:
        comparison: Of runs whose numbers may stand in one table.
        name: Begins the ids of this part of the page.
        folder: Of the report, where an analysis on demand may have left numbers.
    """
    view = View(comparison)
    baseline = comparison.baseline or None
    made = {
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
        "legend": drawn.legend(view, f"{name}-legend"),
        "strategies": view.strategies,
        "scores": sections.score_tables(view),
        "bounds": comparison.bounds,
        "bounds_note": bounds_note(comparison),
        "untouched": sections.estimate_text(Estimate(comparison.untouched(), math.nan, 0))["text"],
        "noise": sections.test_noise(view),
        "published": sections.published(view),
        "budgets": sections.budgets(view),
        "baseline": baseline,
        "differences": sections.differences(view, baseline),
        "matrices": sections.matrices(view),
        "tradeoff": drawn.tradeoff(view, f"{name}-tradeoff-figure"),
        "domains": drawn.courses(view, f"{name}-domain", probes=False),
        "probes": drawn.courses(view, f"{name}-probe", probes=True),
        "losses": drawn.losses(view, f"{name}-loss"),
        "answers": [(task, view.asked(task)) for task in (view.tasks(view.orders[0]) if view.orders else [])],
        "on_demand": drawn.on_demand(comparison, folder, f"{name}-knock-out"),
        "protocol": protocol(comparison),
        "tasks": tasks(comparison),
        "references": comparison.references,
        "seeds": {
            strategy: {order: comparison.seeds(strategy, order) for order in view.orders}
            for strategy in view.strategies
        },
        "configs": configs(view),
    }
    return {**made, "contents": contents(made)}


def contents(made: Mapping[str, Any]) -> dict[str, str]:
    """The sections that a part has: the end of each one's id, and its name."""
    there = {"published": made["published"], "unfinished": any(run["matrix"] for run in made["unfinished"])}
    there |= {"relearning": made["on_demand"]["relearning"], "knock-out": made["on_demand"]["maps"]}
    return {name: text for name, text in CONTENTS.items() if there.get(name, True)}


def first_protocol(comparison: Comparison) -> Protocol:
    """The protocol of the first run: what is learnt and tested is the same in all."""
    return every_run(comparison)[0].protocol


def every_run(comparison: Comparison) -> list[RunFolder]:
    """The finished runs, then the others."""
    return [*comparison.runs, *(run for run, _ in comparison.unfinished)]


def lead(comparison: Comparison) -> str:
    """The comparison in a sentence or two."""
    count, known = sections.count_of, first_protocol(comparison)
    of = f"{count(len(known.order), 'domain')} of {known.benchmark}, learnt by {known.backbone}."
    if not comparison.runs:
        return f"No run has come to its end yet. {of}"
    seeds = {
        seed for name in comparison.strategies for order in comparison.orders for seed in comparison.seeds(name, order)
    }
    sizes = (
        count(len(comparison.strategies), "strategy", "strategies"),
        count(len(comparison.orders), "order"),
        count(len(seeds), "seed"),
    )
    return f"{', '.join(sizes)}: {count(len(comparison.runs), 'finished run')}. {of}"


def protocol(comparison: Comparison) -> dict[str, str]:
    """How it was made and measured, label by label; what differs between runs is told with all its values."""
    known, text = comparison.protocol, comparison.protocol.get("text", {})
    surroundings = [run.environment() for run in every_run(comparison)]

    def told(section: str) -> str:
        found = {str(one[section]): one[section] for one in surroundings if one.get(section)}
        return "; or ".join(
            ", ".join(f"{name} {value}" for name, value in one.items() if value) if isinstance(one, dict) else str(one)
            for one in found.values()
        )

    labels = {
        "model": known.get("backbone"),
        "benchmark": known.get("benchmark"),
        "notes": known.get("benchmark_notes"),
        "scored on": f"{known.get('scored_on', 'test')} rows",
        "decoding": known.get("decoding"),
        "precision": known.get("precision"),
        "weights": known.get("dtype"),
        "text": ", ".join(f"{name.replace('_', ' ')} {text[name]}" for name in TEXTS if text.get(name) is not None),
        "processes": known.get("processes"),
        **{section: told(section) for section in ("hardware", "versions", "commit", "inputs")},
    }
    return {label: str(value) for label, value in labels.items() if value}


def tasks(comparison: Comparison) -> list[dict[str, Any]]:
    """What is learnt and tested: rows, metric, and what the commonest answer alone would score."""
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
    """The config of each strategy's first run."""
    found = {}
    for strategy in view.strategies:
        file = view.first_run(strategy)[0].path / "config.yaml"
        found[strategy] = file.read_text(encoding="utf-8") if file.is_file() else "config.yaml is not there."
    return found


def heat_style() -> str:
    """The colours of a heat map's cells, each with the text colour that is read best on it."""
    rules = []
    for place in range(sections.SHADES + 1):
        red, green, blue, _ = matplotlib.colormaps["cividis"](place / sections.SHADES)
        ink = "#000" if contrast_with_black((red, green, blue)) >= 21**0.5 else "#fff"
        color = matplotlib.colors.to_hex((red, green, blue))
        rules.append(f".h{place}{{background:{color};color:{ink}}}")
    return "\n".join(rules)


def contrast_with_black(color: Sequence[float]) -> float:
    """WCAG's contrast ratio; that with white is 21 divided by it.

    >>> contrast_with_black((1.0, 1.0, 1.0)), contrast_with_black((0.0, 0.0, 0.0))
    (21.0, 1.0)
    """
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    red, green, blue = linear
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) / 0.05
