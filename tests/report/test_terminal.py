"""Tables in the terminal: each cell against a number worked out by hand, and the choice of a sweep."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import compared, scores, write_many, write_run, write_three_tasks
from helpers.tables import printed
from rich.console import Console

from workbench.formatting import score_table
from workbench.report import compare
from workbench.report.terminal import (
    MATRICES_PRINTED,
    MOST_WARNINGS,
    by_domain,
    comparison_table,
    cost_table,
    difference_table,
    domain_table,
    matrix_table,
    sentences,
    tables,
    trial_rows,
)
from workbench.results import RunFolder


def flat(table: object, width: int = 240) -> str:
    """What is printed, without line ends."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_strategy_is_averaged_over_its_runs(tmp_path: Path) -> None:
    long, short = {"train_seconds": 30.0, "eval_seconds": 0.0}, {"train_seconds": 7.5, "eval_seconds": 7.5}
    for seed, (op, costs) in enumerate(((0.5, long), (0.8, short))):
        write_run(tmp_path, ("lora", "1", seed), scores(op), costs={**costs, "added_parameters": 1000})
    write_run(tmp_path, ("seqft", "1", 0), scores(0.25))
    lora, seqft = printed(comparison_table(compared(tmp_path)))
    assert lora[:2] == ["lora (mean of 2)", "0.650"]
    assert lora[-3:] == ["10", "1,000", "45 s"]
    assert seqft[:2] == ["seqft", "0.250"]


def test_intervals_orders_and_differences(two_orders: Path) -> None:
    """t(2) = 4.302653: of 0.4, 0.5, 0.6 ± 0.248, of 0.42, 0.53, 0.64 ± 0.273, of their differences ± 0.025."""
    one = compared(two_orders)
    cells = [row[:2] for row in printed(comparison_table(one, 200))]
    assert cells == [
        ["seqft, order 1 (mean of 3)", "0.500 ± 0.248"],
        ["seqft, order 2", "0.700"],
        ["seqft, mean of 2 orders", "0.600"],
        ["lora, order 1 (mean of 3)", "0.530 ± 0.273"],
        ["lora, mean of 2 orders", "–"],
    ]
    narrow = flat(comparison_table(one, 80), 80)
    assert "±0.248" in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    differences = printed(difference_table(one, 200))
    assert [differences[0][place] for place in (0, 1, -1)] == ["lora, order 1", "+0.030 ± 0.025", "3"]
    assert [differences[1][place] for place in (0, 1)] == ["lora, mean of 2 orders", "–"]
    text = flat(comparison_table(one, 200))
    assert "±: 95 % t interval over seeds" in text
    assert "seqft, order 2 0.062; lora, order 1 " in text  # 1.96 · √(0.6 · 0.4 / 100 + 0.8 · 0.2 / 100) / 2 = 0.062


def test_what_each_strategy_costs_is_averaged_over_its_runs(tmp_path: Path) -> None:
    one = {"train_seconds": 10.0, "tokens": 10_000, "replay_rows": 3, "decoded_tokens": 100}
    two = {"train_seconds": 30.0, "tokens": 60_030, "replay_rows": 4, "decoded_tokens": 150}
    for seed, costs in enumerate((one, two)):
        write_run(tmp_path, ("lora", "1", seed), scores(0.5), costs=costs)
    unknown = write_run(tmp_path, ("seqft", "1", 0), scores(0.5))
    unknown.write_environment(unknown.environment() | {"peak_memory_bytes": None})
    lines = flat(cost_table(compared(tmp_path)), 80).splitlines()
    lora, seqft = (line.split() for line in lines if line.startswith(("lora", "seqft")))
    # 20,000 and 120,060 tokens; 1,000 and 2,001 a second; 100 and 150 decoded in half a second; 5 MB; 2 bytes
    assert lora == ["lora", "10", "4", "12", "70K", "7", "1500", "250", "5", "0", "40", "2"]
    assert seqft == ["seqft", "10", "4", "12", "1.2K", "4", "300", "100", "–", "0", "4", "2"]


def test_a_method_that_is_given_the_task_is_marked(tmp_path: Path) -> None:
    write_run(tmp_path, ("oracle", "1", 0), scores(0.5), task_id_at_test=True, strategies=["oracle", "lora"])
    write_run(tmp_path, ("lora", "1", 0), scores(0.5))
    table = comparison_table(compared(tmp_path))
    assert [cells[0] for cells in printed(table)] == ["oracle †", "lora"]
    assert "† is given the task's identity at test time" in str(table.caption)


def test_one_unmeasured_value_makes_the_mean_unmeasured(tmp_path: Path) -> None:
    write_run(tmp_path, ("lora", "1", 0), scores(0.5))
    write_run(tmp_path, ("lora", "1", 1), scores(math.nan))
    assert printed(comparison_table(compared(tmp_path)))[0][1] == "–"


def test_a_matrix_as_it_is_printed(tmp_path: Path) -> None:
    cells = printed(matrix_table(write_three_tasks(tmp_path), 120))
    assert cells[0] == ["0", "0.10", "0.20", "0.10", "0.50"]
    assert cells[3] == ["3", "0.50", "0.60", "0.70", "0.30"]


def test_the_most_common_answer_stands_above_a_matrix(tmp_path: Path) -> None:
    run = write_three_tasks(tmp_path)
    first = run.layout.order[0]
    run.add_to_environment("protocol", {"majority": {first: ["A", 0.375]}})
    table = matrix_table(run, 120)
    assert printed(table)[0] == ["majority", "0.38", "–", "–", "–"]
    assert "score of the most common answer" in str(table.caption)


def altered(run: RunFolder, cell: str, value: str) -> RunFolder:
    """The run with another value in one cell of its scores, given as "after,on,metric,"."""
    file = run.path / "scores.csv"
    text, count = re.subn(rf"(?m)^{cell}[^,]+", f"{cell}{value}", file.read_text(encoding="utf-8"))
    assert count == 1
    file.write_text(text, encoding="utf-8")
    (run.path / "journal.jsonl").unlink()  # which would win
    return RunFolder(run.path)


def test_domain_by_domain(tmp_path: Path) -> None:
    """Learnt is the diagonal and the end the last row, averaged over two seeds that differ in one cell."""
    runs = [write_three_tasks(tmp_path / "one", seed=0), write_three_tasks(tmp_path / "two", seed=1)]
    runs[1] = altered(runs[1], "3,a,accuracy,", "0.1")  # 0.5 in the other
    learnt = [f"{value:.2f}" for value in runs[0].matrix()[1:].diagonal()]
    rows = {cells[0]: cells[1:] for cells in printed(domain_table(runs, 120))}
    assert list(rows) == ["zero-shot", "lora, learnt", "lora, end"]
    assert rows["zero-shot"] == ["0.10", "0.20", "0.10", "0.50"]
    assert rows["lora, learnt"] == [*learnt, "–"]
    assert rows["lora, end"] == ["0.30", "0.60", "0.70", "0.30"]


def test_what_is_learnt_together_has_no_turn_and_labels_have_a_floor(tmp_path: Path) -> None:
    run = write_three_tasks(tmp_path)
    run = altered(run, "1,a,accuracy,", "nan")
    run.add_to_environment("protocol", {"majority": {"b": ["A", 0.375]}, "scored_on": "validation"})
    table = domain_table([run], 120)
    assert [cells[0] for cells in printed(table)] == ["zero-shot", "lora, end", "majority"]
    assert printed(table)[-1] == ["majority", "–", "0.38", "–", "–"]
    assert str(table.caption).startswith("scored on validation rows; learnt: ")


def test_tables_fit_a_terminal_of_eighty_characters(tmp_path: Path) -> None:
    for name in ("block_expansion", "lora"):
        for seed in range(3):
            large = {"trainable_parameters": 6_738_415_616, "tokens": 1_234_567_890, "replay_rows": 123_456}
            write_run(tmp_path / "s", (name, "1", seed), scores(0.5 + seed / 10), costs=large)
    one = compared(tmp_path / "s")
    names = [f"some_long_task_{index}" for index in range(13)]
    matrix = score_table("title", names, 80)
    matrix.add_row("8", *["0.12"] * 13)
    shown = (*tables(one, 80), matrix, matrix_table(write_three_tasks(tmp_path / "run"), 80))
    text = "".join(flat(table, 80) for table in shown)
    assert "…" not in text
    assert "6.74B" in text
    assert " ".join(["8", *["0.12"] * 13]) in text


def test_runs_of_the_same_name_stand_apart_domain_by_domain(two_orders: Path) -> None:
    """`lora` of t ends at 0.9: it is neither shown nor averaged as that of s."""
    write_run(two_orders.parent / "t", ("lora", "1", 0), scores(0.9), config="name: made\nkey: 1\n")
    found = compare([two_orders, two_orders.parent / "t"])
    *matrices, means = by_domain(found, 200)
    assert [str(getattr(table, "title", "")) for table in matrices][-1] == "lora (t), order 1, seed 0"
    rows = {cells[0]: cells[1:] for cells in printed(means)}
    assert rows["lora (s), end"][:2] == ["0.43", "0.63"]
    assert rows["lora (t), end"][:2] == ["0.80", "1.00"]


def test_few_matrices_are_printed_and_many_are_pointed_at(tmp_path: Path) -> None:
    few = list(by_domain(compare([write_many(tmp_path / "few", 2, 1, MATRICES_PRINTED // 2)]), 120))
    assert [getattr(table, "title", table) for table in few] == [
        *(f"s{name}, order o0, seed {seed}" for name in range(2) for seed in range(MATRICES_PRINTED // 2)),
        "Scores by domain, mean over seeds and orders",
    ]
    means, line = by_domain(compare([write_many(tmp_path / "many", 1, 1, MATRICES_PRINTED + 1)]), 120)
    assert printed(means)[0] == ["zero-shot", "0.10", "0.20", "0.50"]
    assert str(line).startswith(f"The score matrices of {MATRICES_PRINTED + 1} runs are in report.html, and each in")


def test_a_terminal_is_not_flooded_with_warnings(tmp_path: Path) -> None:
    comparison, *_ = compare([write_many(tmp_path, MOST_WARNINGS + 4, 1, 1)])
    assert len(comparison.warnings) > MOST_WARNINGS
    *shown, last = sentences(comparison)
    assert shown == comparison.warnings[:MOST_WARNINGS]
    assert last == f"{len(comparison.warnings) - MOST_WARNINGS} more sentences like these are in report.html."


def summaries(method: str, scores: dict[str, list[float]], bound: str | None = None) -> list[dict[str, Any]]:
    return [
        {"trial_of": method, "strategy": name, "bound": bound, "OP": value, "learning_accuracy": 1 - value}
        for name, values in scores.items()
        for value in values
    ]


def test_the_best_trial_of_each_method_is_chosen() -> None:
    known = summaries("a", {"a 1": [0.2, 0.4], "a 2": [0.5, 0.3], "a 3": [0.9]})
    known += summaries("b", {"b 1": [0.2], "b 2": [0.6]}, bound="learning_accuracy")
    known += [*summaries("c", {"c 1": [math.nan]}), {"trial_of": None, "strategy": "d", "OP": 1.0}]
    found = trial_rows(known)
    assert [(row["strategy"], row["trials"], row["runs"]) for row in found] == [
        ("a 1", 3, 2), ("a 2", 3, 2), ("a 3", 3, 1), ("b 1", 2, 1), ("b 2", 2, 1), ("c 1", 1, 1),
    ]  # fmt: skip
    assert [row["strategy"] for row in found if row["chosen"]] == ["a 2", "b 1"]
    assert [row["mean"] for row in found[:2]] == [pytest.approx(0.3), pytest.approx(0.4)]
    assert {row["measure"] for row in found} == {"OP", "learning_accuracy"}
