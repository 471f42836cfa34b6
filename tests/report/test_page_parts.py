"""What a page shows only where it is there: yardsticks, the test sets' noise, published tables, analyses on demand."""

from __future__ import annotations

import math
import re
from pathlib import Path

from helpers.made_runs import make_run, make_study
from helpers.run_folders import made_run
from test_page import page_of
from test_published import SAME, TASKS

from workbench.report import compare
from workbench.report.analyses import columns_of, model_of
from workbench.report.figures import figures
from workbench.report.scores import View
from workbench.results import RunFolder
from workbench.runtime.files import to_csv

SHOWN = ["compared", "tradeoff", "matrices", "domains", "probes", "losses", "answers", "protocol"]


def sections_of(text: str) -> list[str]:
    """What the page's navigation leads to."""
    (navigation,) = re.findall("(?s)<nav.*?</nav>", text)
    return re.findall('href="#c1-([^"]+)"', navigation)


def test_a_yardstick_is_marked_and_the_untouched_model_stands_below(tmp_path: Path) -> None:
    """The untouched model scores 0.1 and 0.2."""
    study = make_study(tmp_path / "made", seeds=1)
    make_run(study, "joint", 0, bound="OP")
    text, page = page_of(study)
    (rows,) = (rows for caption, rows in page.found.items() if caption.startswith("Scores"))
    assert [cells[0] for cells in rows[1:]] == ["seqft", "lora", "joint ‡", "untouched model ‡"]
    assert rows[-1][1:] == ["–", "0.150", *["–"] * (len(rows[0]) - 3)]
    note = "‡ a bound, no method of continual learning: joint by OP; the untouched model scores 0.150 on the tasks."
    assert note in text
    drawn = dict(figures(View(compare([study])[0])))
    for name in ("stability-plasticity", "domains-over-time-default"):
        assert [told.get_text() for told in drawn[name].legends[0].texts] == ["seqft", "lora", "joint ‡"]
    lines = drawn["domains-over-time-default"].legends[0].get_lines()
    assert [line.get_markerfacecolor() == "white" for line in lines] == [False, False, True]
    (axes,) = drawn["likelihood-lost"].axes
    assert [told.get_text() for told in axes.get_yticklabels()] == ["joint ‡", "lora", "seqft"]


def test_no_yardstick_no_word_of_one(tmp_path: Path) -> None:
    assert "‡" not in page_of(make_study(tmp_path / "made", seeds=1))[0]


def test_the_noise_of_the_test_rows_stands_apart(tmp_path: Path) -> None:
    """10 rows: √(0.5 · 0.5 / 10) and √(0.8 · 0.2 / 10), the root of the sum of squares, halved; times 1.96."""
    text, page = page_of(make_study(tmp_path / "made", ["lora"], seeds=1))
    error = math.hypot(math.sqrt(0.025), math.sqrt(0.016)) / 2
    assert page.found["OP and what the test rows leave open of it"][1:] == [
        ["lora", "default", "0.650", f"{error:.4f}", f"± {1.96 * error:.3f}"]
    ]
    assert f"What the finite test sets leave open: OP ± {1.96 * error:.3f}</summary>" in text


def test_published_tables_stand_beside_a_study_of_their_tasks(tmp_path: Path) -> None:
    matrix = [[0.1] * 9, *[[0.25] * 9] * 8]
    made_run(tmp_path / "one", ("lora", "1", 0), matrix, tasks=TASKS, **SAME)
    text, page = page_of(tmp_path / "one")
    rows = page.found["This study and published tables, scores in [0, 1]"]
    assert rows[0] == ["strategy", "OP", "BWT", "general delta"]
    assert rows[1:3] == [["this study"], ["lora", "0.250", "0.000", "0.150"]]
    assert rows[3] == ["Wang et al., 2023, TRACE (arXiv 2310.06762)"]
    assert ["SeqFT", "0.487", "-0.083", "-0.026"] in rows
    assert ["Wu et al., 2024, LLaMA Pro, version 1 (arXiv 2401.02415v1), Table 6"] in rows
    assert "<li>decoding: sampled at temperature 0.1 there, greedy here</li>" in text
    assert "SeqFT, re-run" not in text  # learnt other tasks
    assert sections_of(text)[:2] == ["compared", "published"]


def test_the_navigation_leads_to_what_is_there_and_to_nothing_else(tmp_path: Path) -> None:
    study = make_study(tmp_path / "made", ["lora"], seeds=1)
    assert sections_of(page_of(study)[0]) == SHOWN
    run = RunFolder(study / "lora" / "default" / "seed-0")
    named = {"run": "lora/default/seed-0", "model": model_of(run), "strategy": "lora", "order": "default", "seed": "0"}
    for name, told in {
        "relearning": {"learnt": "0.9", "before": "0.5", "untouched": "0.1", "steps": "4", "steps_untouched": "8"},
        "knock_out": {"part": "block 1", "change": "-0.25"},
    }.items():
        row = {**dict.fromkeys(columns_of(name), "1"), **named, "domain": "a", **told}
        (study / f"{name}.csv").write_text(to_csv(columns_of(name), [row]), encoding="utf-8")
    make_run(study, "seqft", 0, rows=2)
    text, page = page_of(study)
    told = [*SHOWN[:-1], "relearning", "knock-out", "unfinished", "protocol"]
    assert sections_of(text) == told
    assert {f"c1-{name}" for name in told} <= {*page.ids}
    assert page.found["Change of the primary score, means over seeds"][1] == ["a", "-0.250"]


def test_a_study_without_test_errors_has_no_such_section(tmp_path: Path) -> None:
    """0.555 of 100 rows is no number of rows, so that the scores' errors are not known."""
    made_run(tmp_path / "s", ("lora", "1", 0), [[0.1, 0.2, 0.5], [0.9, 0.3, 0.5], [0.555, 0.8, 0.4]])
    assert "finite test sets" not in page_of(tmp_path / "s")[0]
