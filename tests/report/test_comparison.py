"""Means, intervals, differences and warnings of a comparison: every number against one worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers.run_folders import ROWS, TWO_STRATEGIES, compared, scores, write_run

from workbench.errors import ConfigError
from workbench.report import compare
from workbench.report.comparison import BUDGET

T2 = 4.302653  # the two-sided 95 % point of t with two degrees of freedom


def test_what_is_there(two_strategies: Path) -> None:
    comparison = compared(two_strategies)
    assert comparison.title == "s"
    assert comparison.strategies == ["seqft", "lora"]  # as in the config, not by path
    assert comparison.baseline == "seqft"
    assert comparison.orders == ["1"]
    assert comparison.seeds("lora", "1") == [0, 1, 2]
    assert (comparison.problems, comparison.unfinished, comparison.apart) == ([], [], "")
    assert comparison.protocol["benchmark"] == "b.B"
    assert "strategy" not in comparison.protocol
    run = comparison.of("lora", "1", 2)
    assert run is not None
    assert run.path == two_strategies / "lora" / "1" / "seed-2"
    assert comparison.of("lora", "1", 3) is None
    assert comparison.references == {"seqft": ["Someone, 2020"], "lora": ["Someone, 2020"]}


def test_every_estimate_by_hand(two_strategies: Path) -> None:
    """Of a matrix [[.1, .2], [.9, .3], [x − .1, x + .1]] with a probe of .5, .5, .4; x is 0.4, 0.5, 0.6."""
    comparison = compared(two_strategies)
    expected = {
        "OP": (0.5, 0.1),  # x, and the standard deviation over seeds
        "BWT": (0.5 - 0.1 - 0.9, 0.1),
        "FWT": (0.3 - 0.2, 0.0),
        "forgetting": (0.9 - 0.4, 0.1),
        "learning_accuracy": ((0.9 + 0.6) / 2, 0.05),
        "general_delta": (-0.1, 0.0),
    }
    for measure, (mean, deviation) in expected.items():
        estimate = comparison.estimate("seqft", "1", measure)
        assert estimate.mean == pytest.approx(mean), measure
        assert estimate.half_width == pytest.approx(T2 * deviation / math.sqrt(3), rel=1e-6, abs=1e-12), measure
        assert estimate.count == 3


def test_every_difference_by_hand(two_strategies: Path) -> None:
    """Seed by seed lora is 0.02, 0.03 and 0.04 above seqft, though each scatters by 0.1."""
    comparison = compared(two_strategies)
    difference = comparison.difference("lora", "seqft", "1", "OP")
    assert difference.mean == pytest.approx(0.03)
    assert difference.half_width == pytest.approx(T2 * 0.01 / math.sqrt(3), rel=1e-6)
    assert comparison.difference("seqft", "lora", "1", "learning_accuracy").mean == pytest.approx(-0.015)


def test_every_budget_by_hand(two_strategies: Path) -> None:
    """Two items of 6 steps, 600 tokens, 2 replayed rows, 2 + 1 seconds; one seed of three has 900 and 5."""
    comparison = compared(two_strategies)
    expected = dict(zip(BUDGET, (10, 4, 12, 1200, 4, 4, 2, 5e6, 2), strict=True))
    assert comparison.budget("seqft") == {**expected, "task_id_at_test": False}
    lora = comparison.budget("lora")
    assert (lora["tokens"], lora["replay_rows"]) == ((1200 + 1800 + 1200) / 3, (4 + 10 + 4) / 3)


def test_the_noise_of_the_test_sets_by_hand(two_strategies: Path) -> None:
    """OP is the mean of two shares of 100 rows: √(p(1 − p)/100 + q(1 − q)/100) / 2, averaged over seeds."""
    errors = []
    for op in TWO_STRATEGIES["seqft"]:
        variances = [share * (1 - share) / ROWS for share in (op - 0.1, op + 0.1)]
        errors.append(math.sqrt(sum(variances)) / 2)
    assert compared(two_strategies).test_error("seqft", "1") == pytest.approx(sum(errors) / 3)


def test_several_orders_are_averaged_with_equal_weight_and_without_an_interval(two_strategies: Path) -> None:
    write_run(two_strategies, ("seqft", "2", 0), scores(0.7), tasks=("b", "a"))
    comparison = compared(two_strategies)
    assert comparison.orders == ["1", "2"]
    both = comparison.estimate("seqft", None, "OP")
    assert both.mean == pytest.approx((0.5 + 0.7) / 2)  # not over the four runs
    assert math.isnan(both.half_width)
    assert math.isnan(comparison.estimate("lora", None, "OP").mean)  # has not met order 2
    assert comparison.estimate("lora", "2", "OP").count == 0


def test_the_same_strategy_twice_is_within_the_noise(tmp_path: Path) -> None:
    for name in ("lora", "lora_again"):
        for seed, op in enumerate(TWO_STRATEGIES["lora"]):
            write_run(tmp_path / "aa", (name, "1", seed), scores(op))
    warnings = compared(tmp_path).warnings
    assert warnings == ["lora_again against lora: the same numbers; within the noise, no difference."]


def test_one_pair_of_the_same_numbers_is_no_difference_either(tmp_path: Path) -> None:
    for name in ("lora", "lora_again"):
        write_run(tmp_path / "aa", (name, "1", 0), scores(0.5))
    warnings = compared(tmp_path).warnings
    assert warnings[0] == "lora_again against lora: the same numbers; within the noise, no difference."
    assert warnings[1].startswith("Fewer than 3 seeds, so no interval")
    assert warnings[1].endswith("lora (1), lora_again (1).")


def test_a_difference_that_seeds_or_test_rows_could_make_is_said_to_be_noise(tmp_path: Path) -> None:
    """Differences of OP: −0.1, 0.1, 0.03 scatter around 0; 0.02, 0.03, 0.04 do not, but 100 rows could make them."""
    base, wild, near, far = (0.4, 0.5, 0.6), (0.3, 0.6, 0.63), (0.42, 0.53, 0.64), (0.72, 0.83, 0.88)
    for name, values in {"base": base, "wild": wild, "near": near, "zfar": far}.items():
        for seed, op in enumerate(values):
            write_run(tmp_path / "s", (name, "1", seed), scores(op))
    warnings = compared(tmp_path / "s").warnings
    assert [sentence.partition(":")[0] for sentence in warnings] == ["near against base", "wild against base"]
    assert "OP +0.030 is within the noise of the finite test sets (± 0.0" in warnings[0]
    half = T2 * math.sqrt(((-0.11) ** 2 + 0.09**2 + 0.02**2) / 2) / math.sqrt(3)
    assert f"within the noise in OP +0.010 ± {half:.3f}" in warnings[1]


def test_a_task_that_was_solved_before_is_named(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "s", ("lora", "1", seed), scores(0.5, zero_shot=0.97))
    assert compared(tmp_path).warnings == ["The model solves a zero-shot (0.97): there is nothing to forget there."]


def test_the_baseline_is_chosen_by_name(two_strategies: Path) -> None:
    assert compared(two_strategies, baseline="lora").baseline == "lora"
    with pytest.raises(ConfigError, match=r"baseline: no finished run is of a strategy 'lroa'\. Did you mean 'lora'\?"):
        compare([two_strategies], "lroa")


def test_two_runs_of_one_cell_are_not_averaged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s", ("lora", "1", 0), scores(0.5))
    run.path.rename(tmp_path / "first")
    run = write_run(tmp_path / "s", ("lora", "1", 0), scores(0.9))
    run.path.rename(tmp_path / "second")
    comparison = compared(tmp_path)
    assert comparison.estimate("lora", "1", "OP").mean == pytest.approx(0.5)
    assert "are both lora, order 1, seed 0: the second is left out" in comparison.problems[0]


def test_a_study_without_a_finished_run_is_reported_all_the_same(tmp_path: Path) -> None:
    write_run(tmp_path / "s", ("lora", "1", 0), scores(0.9)[:1], ended=False)
    comparison = compared(tmp_path)
    assert [far for _, far in comparison.unfinished] == ["0 of 2 tasks"]
    assert (comparison.runs, comparison.strategies, comparison.warnings, comparison.baseline) == ([], [], [], "")
