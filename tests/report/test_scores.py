"""Scores of a comparison, cell by cell, and the answers behind them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers.run_folders import EXAMPLE_ANSWERS, compared, scores, write_example, write_examples, write_run

from workbench.report.scores import NATS, View, read_answers


def test_a_cell_is_the_mean_over_seeds_and_unknown_where_one_seed_lacks_it(tmp_path: Path) -> None:
    view = View(compared(write_examples(tmp_path / "s", ["lora"])))
    assert view.cell("lora", "default", (2, "a")).mean == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    assert view.cell("lora", "default", (2, "a"), "accuracy_lenient").mean == pytest.approx(0.65)
    assert view.cell("lora", "default", (2, "b"), NATS).mean == pytest.approx(2 - 0.8)
    assert math.isnan(view.cell("lora", "default", (2, "b"), "accuracy_lenient").mean)
    file = tmp_path / "s" / "lora" / "default" / "seed-1" / "scores.csv"
    file.write_text(file.read_text().replace("2,a,accuracy,0.6,10\n", ""))
    view = View(compared(tmp_path / "s"))
    assert math.isnan(view.cell("lora", "default", (2, "a")).mean)
    assert view.cell("lora", "default", (1, "a")).mean == pytest.approx(0.9)


def test_a_matrix_is_of_one_seed_or_of_their_mean(tmp_path: Path) -> None:
    view = View(compared(write_examples(tmp_path / "s", ["lora"])))
    assert view.tested("default") == ["a", "b", "p"]
    assert view.matrix("lora", "default", 2)[2] == pytest.approx([0.7, 0.8, 0.4])
    assert view.matrix("lora", "default")[2] == pytest.approx([0.6, 0.8, 0.4])


def test_the_order_to_show_first(tmp_path: Path) -> None:
    """The mean over orders, unless a strategy lacks one; then the order that most strategies have."""
    study = write_examples(tmp_path / "s", seeds=1)
    assert View(compared(study)).main_order == "default"
    write_example(study, "lora", 0, order_name="other")
    assert View(compared(study)).main_order == "default"
    write_example(study, "seqft", 0, order_name="other")
    assert View(compared(study)).main_order is None


def test_losses_are_means_over_seeds_then_over_orders(tmp_path: Path) -> None:
    """Of a, 0.9 when it is learnt; at the end 0.3, 0.4 and 0.5 in one order, and 0.6 in the other, where it is last."""
    for seed, op in enumerate((0.4, 0.5, 0.6)):
        write_run(tmp_path / "s", ("lora", "1", seed), scores(op))
    write_run(tmp_path / "s", ("lora", "2", 0), [[0.1, 0.2, 0.5], [0.3, 0.4, 0.5], [0.7, 0.6, 0.4]], tasks=("b", "a"))
    first, second = View(compared(tmp_path / "s")).losses("lora")
    assert (first.domain, second.domain) == ("a", "b")
    assert first.strict == pytest.approx(((0.9 + 0.6) / 2, (0.4 + 0.6) / 2))
    assert second.strict == pytest.approx(((0.6 + 0.3) / 2, (0.6 + 0.7) / 2))
    assert all(map(math.isnan, first.lenient))


def test_the_answers_of_a_row_zero_shot_learnt_and_at_the_end(tmp_path: Path) -> None:
    (asked,) = View(compared(write_examples(tmp_path / "s", seeds=2))).asked("a")
    assert (asked.prompt, asked.expected) == ("Is <i>it</i> so?", "yes")
    assert [answer.strategy for answer in asked.answers] == ["seqft", "lora"]
    for answer in asked.answers:
        assert [answer.before, answer.learnt, answer.end] == EXAMPLE_ANSWERS


def test_a_torn_file_of_answers_is_read_up_to_the_tear(tmp_path: Path) -> None:
    run = write_example(tmp_path / "s", "lora", 0)
    file = run / "predictions" / "0-a.jsonl"
    file.write_text(file.read_text() + '[1]\n{"prompt": "second", "pred')
    assert list(read_answers(run, 0, "a")) == ["Is <i>it</i> so?"]
    assert read_answers(run, 0, "absent") == {}
