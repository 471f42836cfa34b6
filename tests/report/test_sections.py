"""Contents of the page: every number is one worked by hand, and optional sections are there where they have any."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from helpers.pages import page_of
from helpers.run_folders import write_example, write_examples, write_run

from benchmarks.trace.sequence import ORDERS
from workbench.report import compare
from workbench.report.figures import figures
from workbench.report.scores import View


def test_every_number_is_the_one_worked_by_hand(tmp_path: Path) -> None:
    """a ends at 0.5, 0.6 and 0.7: the means differ by 0.05 a seed, t = 4.303, s / √3 = 0.0289; or twice that."""
    _, page = page_of(write_examples(tmp_path / "made"))
    assert page.open == []
    (scores,) = (rows for caption, rows in page.found.items() if caption.startswith("Scores"))
    row = {cells[0]: cells[1:] for cells in scores}["lora"]
    assert row[:7] == [
        "3",
        "0.700 ± 0.124",
        "-0.300 ± 0.248",
        "0.100 ± 0.000",
        "0.300 ± 0.248",
        "0.850 ± 0.000",
        "-0.100 ± 0.000",
    ]
    assert row[7:11] == ["15.6 K", "100", "6", "120"]
    assert row[12:14] == ["3 s", "1 s"]
    full = page.found["Means over runs: parameters, optimizer steps, tokens, rows, seconds, bytes"]
    assert full[1][1:5] == ["15,552", "100", "6", "120"]
    less = page.found["Strategy − seqft, mean over the seeds that both have (order default)"]
    assert less[1] == ["lora", *["0.000 ± 0.000"] * 6]
    assert page.found["Values of the figure"][1] == ["seqft", "0.300 ± 0.248", "0.850 ± 0.000", "3 s"]


def test_a_matrix_is_there_for_each_seed_and_for_their_mean(tmp_path: Path) -> None:
    _, page = page_of(write_examples(tmp_path / "made"))
    mean, second = (page.found[f"lora, order default, {which}"] for which in ("mean over seeds", "seed 1"))
    assert mean[0] == ["after", "a", "b", "p"]
    assert mean[1:] == [
        ["0 zero-shot", "0.10", "0.20", "0.50"],
        ["1 a", "0.90", "0.30", "0.50"],
        ["2 b", "0.60", "0.80", "0.40"],
    ]
    assert second[3] == ["2 b", "0.60", "0.80", "0.40"]
    assert page.found["lora, order default, seed 2"][3] == ["2 b", "0.70", "0.80", "0.40"]


def test_time_loss_and_rows_are_in_tables(tmp_path: Path) -> None:
    _, page = page_of(write_examples(tmp_path / "made"))
    course = page.found["a (accuracy) after each task, order default"]
    assert course[0] == ["tasks learnt", "0", "1", "2"]
    assert course[1] == ["seqft", "0.10 ± 0.00", "0.90 ± 0.00", "0.60 ± 0.25"]
    assert page.found["p (accuracy) after each task, order default"][2][1:] == [
        "0.50 ± 0.00",
        "0.50 ± 0.00",
        "0.40 ± 0.00",
    ]
    lost = page.found["lora: right after the domain was learnt, and at the end"]
    assert lost[1] == ["a", "0.90", "0.60", "0.95", "0.65", "1.10", "1.40"]
    assert lost[2] == ["b", "0.80", "0.80", "–", "–", "1.20", "1.20"]
    rows = page.found[
        "Rows, primary metric and majority baseline (the score of always giving the most frequent answer)"
    ]
    assert rows[1:] == [
        ["a", "domain", "8", "10", "accuracy", "0.38 (yes)"],
        ["b", "domain", "8", "10", "accuracy", "–"],
        ["p", "probe", "–", "10", "accuracy", "–"],
    ]


def test_two_seeds_have_no_interval(tmp_path: Path) -> None:
    text, page = page_of(write_examples(tmp_path / "made", seeds=2))
    (scores,) = (rows for caption, rows in page.found.items() if caption.startswith("Scores"))
    assert scores[1][2] == "0.675"
    assert 'class="spread"' not in text


def test_several_orders_have_a_table_each_and_one_of_their_means(tmp_path: Path) -> None:
    study = write_examples(tmp_path / "made", ["lora"], seeds=1)
    write_example(study, "lora", 2, order_name="other")
    text, page = page_of(study)
    means = [rows[1][2] for caption, rows in page.found.items() if caption.startswith("Scores")]
    assert means == ["0.700", "0.650", "0.750"]
    assert text.count("<option") == 3 + 2


def test_an_unfinished_run_is_listed_and_is_in_no_table_but_its_own(tmp_path: Path) -> None:
    study = write_examples(tmp_path / "made", ["seqft"], seeds=1)
    run = write_example(study, "lora", 0, rows=2)
    text, page = page_of(study)
    assert "is not finished: 1 of 2 tasks" in text
    assert all(cells[0] != "lora" for rows in page.found.values() for cells in rows)
    assert page.found[f"{run}, 1 of 2 tasks"][1:] == [
        ["0 zero-shot", "0.10", "0.20", "0.50"],
        ["1 a", "0.90", "0.30", "0.50"],
        ["2 b", "–", "–", "–"],
    ]


def test_runs_without_predictions_or_likelihood_are_shown_with_what_they_have(tmp_path: Path) -> None:
    run = write_example(tmp_path / "made", "lora", 0)
    shutil.rmtree(run / "predictions")
    (run / "nll.csv").unlink()
    text, page = page_of(tmp_path / "made")
    assert "No run has predictions for a." in text
    assert page.found["lora: right after the domain was learnt, and at the end"][1][5:] == ["–", "–"]


def test_a_bound_is_marked_and_the_zero_shot_score_is_below(tmp_path: Path) -> None:
    """The untouched model scores 0.1 and 0.2."""
    study = write_examples(tmp_path / "made", seeds=1)
    write_example(study, "joint", 0, bound="OP")
    text, page = page_of(study)
    (rows,) = (rows for caption, rows in page.found.items() if caption.startswith("Scores"))
    assert [cells[0] for cells in rows[1:]] == ["seqft", "lora", "joint ‡", "zero-shot ‡"]
    assert rows[-1][1:] == ["–", "0.150", *["–"] * (len(rows[0]) - 3)]
    note = "‡ a bound, not a method of continual learning: joint by OP; zero-shot, the model scores 0.150 on the tasks."
    assert note in text
    drawn = dict(figures(View(compare([study])[0])))
    for name in ("stability-plasticity", "domains-over-time-default"):
        assert [label.get_text() for label in drawn[name].legends[0].texts] == ["seqft", "lora", "joint ‡"]
    lines = drawn["domains-over-time-default"].legends[0].get_lines()
    assert [line.get_markerfacecolor() == "white" for line in lines] == [False, False, True]
    (axes,) = drawn["likelihood-lost"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["joint ‡", "lora", "seqft"]


def test_no_bound_no_word_of_one(tmp_path: Path) -> None:
    assert "‡" not in page_of(write_examples(tmp_path / "made", seeds=1))[0]


def test_the_noise_of_the_test_rows_stands_apart(tmp_path: Path) -> None:
    """10 rows: √(0.5 · 0.5 / 10) and √(0.8 · 0.2 / 10), the root of the sum of squares, halved; times 1.96."""
    text, page = page_of(write_examples(tmp_path / "made", ["lora"], seeds=1))
    error = math.hypot(math.sqrt(0.025), math.sqrt(0.016)) / 2
    assert page.found["OP ± (95 %, finite test sets)"][1:] == [
        ["lora", "default", "0.650", f"{error:.4f}", f"± {1.96 * error:.3f}"]
    ]
    assert f"OP ± {1.96 * error:.3f} (95 %, finite test sets)</summary>" in text


def test_published_tables_stand_beside_a_study_of_their_tasks(tmp_path: Path) -> None:
    matrix = [[0.1] * 9, *[[0.25] * 9] * 8]
    write_run(tmp_path / "one", ("lora", "1", 0), matrix, tasks=ORDERS["1"], benchmark="benchmarks.Trace")
    text, page = page_of(tmp_path / "one")
    rows = page.found["This study and published results, scores in [0, 1]"]
    assert rows[0] == ["strategy", "OP", "BWT", "general delta"]
    assert rows[1:3] == [["this study"], ["lora", "0.250", "0.000", "0.150"]]
    assert rows[3] == ["Wang et al., 2023, TRACE (arXiv 2310.06762)"]
    assert ["SeqFT", "0.487", "-0.083", "-0.026"] in rows
    assert ["Wu et al., 2024, LLaMA Pro, version 1 (arXiv 2401.02415v1), Table 6"] in rows
    assert "<li>decoding: sampled at temperature 0.1 there, greedy here</li>" in text
    assert "SeqFT, re-run" not in text  # learnt other tasks
    first = ["#c1-compared", "#c1-published", "#c1-tradeoff"]
    assert [link for link in page.links if link in first] == first


def test_a_study_without_test_errors_has_no_such_section(tmp_path: Path) -> None:
    """0.555 of 100 rows is no number of rows, so that the scores' errors are not known."""
    write_run(tmp_path / "s", ("lora", "1", 0), [[0.1, 0.2, 0.5], [0.9, 0.3, 0.5], [0.555, 0.8, 0.4]])
    assert "finite test sets" not in page_of(tmp_path / "s")[0]
