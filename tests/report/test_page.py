"""The page as a file: it is complete, it loads nothing, its links lead somewhere, and a run's text is never HTML."""

from __future__ import annotations

import re
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import pytest
from helpers.pages import page_of
from helpers.run_folders import write_example, write_examples

from workbench.report.analyses import columns_of, model_of
from workbench.report.page import version
from workbench.report.sections import SHADES
from workbench.results import RunFolder
from workbench.runtime.files import to_csv

SHOWN = ["compared", "tradeoff", "matrices", "domains", "probes", "losses", "answers", "protocol"]


def sections_of(text: str) -> list[str]:
    """What the page's navigation leads to."""
    (navigation,) = re.findall("(?s)<nav.*?</nav>", text)
    return re.findall('href="#c1-([^"]+)"', navigation)


def test_answers_are_text_whatever_a_model_says(tmp_path: Path) -> None:
    text, page = page_of(write_examples(tmp_path / "made", seeds=1))
    assert "</script><b>" not in text
    assert text.count("</script>") == 1
    answers = page.found["Is <i>it</i> so? Expected: yes"]
    assert answers[0] == ["strategy", "zero-shot", "after learning", "at the end"]
    assert answers[1] == ["seqft", "what?", "</script><b>no</b>", "</script><b>no</b>"]  # of b, which is learnt last
    assert '<td class="hit">yes</td>' in text  # of a
    assert "made # &lt;lora&gt;" in text.replace("  ", " ")


def test_nothing_is_loaded_and_no_id_is_given_twice(tmp_path: Path) -> None:
    text, page = page_of(write_examples(tmp_path / "made"))
    targets = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert {link for link in page.links if not link.startswith("#")} == {"data:,"}
    assert targets <= {*page.ids}
    assert len(page.ids) == len({*page.ids})
    assert not re.search(r"@import|url\((?!#)|https?:", text)


def test_the_same_runs_make_the_same_page(tmp_path: Path) -> None:
    study = write_examples(tmp_path / "made", seeds=1)
    assert page_of(study)[0] == page_of(study)[0]


def test_a_study_without_a_finished_run_has_a_page_too(tmp_path: Path) -> None:
    write_example(tmp_path / "made", "lora", 0, rows=1)
    text, page = page_of(tmp_path / "made")
    assert "No run is finished yet." in text
    assert page.open == []
    assert [caption for caption in page.found if caption.startswith("Scores")] == []


def test_the_navigation_leads_to_what_is_there_and_to_nothing_else(tmp_path: Path) -> None:
    study = write_examples(tmp_path / "made", ["lora"], seeds=1)
    assert sections_of(page_of(study)[0]) == SHOWN
    run = RunFolder(study / "lora" / "default" / "seed-0")
    named = {"run": "lora/default/seed-0", "model": model_of(run), "strategy": "lora", "order": "default", "seed": "0"}
    for name, values in {
        "relearning": {"learnt": "0.9", "before": "0.5", "untouched": "0.1", "steps": "4", "steps_untouched": "8"},
        "knock_out": {"part": "block 1", "change": "-0.25"},
    }.items():
        row = {**dict.fromkeys(columns_of(name), "1"), **named, "domain": "a", **values}
        (study / f"{name}.csv").write_text(to_csv(columns_of(name), [row]), encoding="utf-8")
    write_example(study, "seqft", 0, rows=2)
    text, page = page_of(study)
    shown = [*SHOWN[:-1], "relearning", "knock-out", "unfinished", "protocol"]
    assert sections_of(text) == shown
    assert {f"c1-{name}" for name in shown} <= {*page.ids}
    assert page.found["Change of the primary score, means over seeds"][1] == ["a", "-0.250"]


def luminance(color: str) -> float:
    """Relative luminance of #rgb or #rrggbb.   (WCAG 2.1)"""
    digits = color.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(color: str, other: str) -> float:
    """Contrast ratio of two colours, between 1 and 21.   (WCAG 2.1)"""
    dark, light = sorted(map(luminance, (color, other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_on_every_shade_of_a_heat_map_has_the_contrast_that_wcag_asks_for() -> None:
    """4.5 : 1 for small text; white on black has 21 : 1."""
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    style = (files("workbench") / "templates" / "style.css").read_text(encoding="utf-8")
    shades = re.findall(r"\.h(\d+) \{ background: (#\w{6}); color: (#\w+); \}", style)
    assert [int(level) for level, _, _ in shades] == list(range(SHADES + 1))
    for level, background, ink in shades:
        assert contrast(background, ink) >= 4.5, level


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", lambda name: f"1.2.3 of {name}")
    assert version() == "1.2.3 of continual-workbench"
    monkeypatch.setattr(metadata, "version", missing)
    assert version() == "(source checkout)"
