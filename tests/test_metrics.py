"""The score matrix's metrics against values worked out by hand, and against one published matrix."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from workbench import metrics

NAN = math.nan

# Three tasks; every sum below can be checked on paper.
R = torch.tensor(
    [
        [0.10, 0.20, 0.30],
        [0.80, 0.25, 0.20],
        [0.90, 0.70, 0.50],
        [0.50, 0.75, 0.60],
    ],
    dtype=torch.float64,
)

OF_A_MATRIX = [
    metrics.overall_performance,
    metrics.backward_transfer,
    metrics.backward_transfer_over_all,
    metrics.backward_transfer_clipped,
    metrics.forward_transfer,
    metrics.forgetting,
    metrics.forgetting_max_of_all,
    metrics.forgetting_first_last,
    metrics.learning_accuracy,
]
NEEDS_TWO_TASKS = [f for f in OF_A_MATRIX if f.__name__ not in ("overall_performance", "learning_accuracy")]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.overall_performance, (0.50 + 0.75 + 0.60) / 3),
        (metrics.backward_transfer, ((0.50 - 0.80) + (0.75 - 0.70)) / 2),
        (metrics.backward_transfer_over_all, ((0.50 - 0.80) + (0.75 - 0.70)) / 3),
        (metrics.backward_transfer_clipped, (0.50 - 0.80) / 2),
        (metrics.forward_transfer, ((0.25 - 0.20) + (0.50 - 0.30)) / 2),
        (metrics.forgetting, ((0.90 - 0.50) + (0.70 - 0.75)) / 2),
        (metrics.forgetting_max_of_all, (0.90 - 0.50) / 2),
        (metrics.forgetting_first_last, ((0.80 - 0.50) + (0.70 - 0.75)) / 2),
        (metrics.learning_accuracy, (0.80 + 0.70 + 0.60) / 3),
    ],
)
def test_hand_computed(metric: Callable[[Tensor], float], expected: float) -> None:
    assert metric(R) == pytest.approx(expected, abs=1e-12)


def test_forgetting_counts_scores_from_before_a_tasks_own_training_but_not_the_untouched_model() -> None:
    zero_shot = torch.tensor([[0.0, 0.95, 0.0], [0.5, 0.9, 0.0], [0.5, 0.6, 0.0], [0.5, 0.4, 0.0]])
    assert metrics.forgetting(zero_shot) == pytest.approx((0.0 + (0.9 - 0.4)) / 2)


def test_the_series_after_each_task() -> None:
    assert metrics.overall_performance(R, after=1) == pytest.approx(0.80)
    assert metrics.overall_performance(R, after=2) == pytest.approx((0.90 + 0.70) / 2)
    assert metrics.overall_performance(R, after=3) == metrics.overall_performance(R)
    assert math.isnan(metrics.backward_transfer(R, after=1))
    assert metrics.backward_transfer(R, after=2) == pytest.approx(0.90 - 0.80)
    assert metrics.backward_transfer(R, after=3) == metrics.backward_transfer(R)


def test_the_series_needs_no_later_round() -> None:
    """A run in progress has OP_t and BWT_t for the rounds that are done."""
    begun = R.clone()
    begun[3] = NAN
    assert metrics.overall_performance(begun, after=2) == pytest.approx(0.80)
    assert metrics.backward_transfer(begun, after=2) == pytest.approx(0.10)
    assert math.isnan(metrics.overall_performance(begun))


def test_one_task_has_no_past_and_no_future() -> None:
    single = torch.tensor([[0.2], [0.7]])
    assert metrics.overall_performance(single) == pytest.approx(0.7)
    assert metrics.learning_accuracy(single) == pytest.approx(0.7)
    for metric in NEEDS_TWO_TASKS:
        assert math.isnan(metric(single)), metric.__name__


@pytest.mark.parametrize(
    ("row", "column", "touched"),
    [
        (3, 0, {"overall_performance", "backward", "forgetting"}),
        (3, 2, {"overall_performance", "learning_accuracy"}),
        (1, 0, {"backward", "forgetting_first_last", "learning_accuracy"}),
        (0, 1, {"forward_transfer"}),
        (1, 1, {"forward_transfer"}),
        (0, 0, set()),
        (1, 2, set()),
    ],
)
def test_an_unmeasured_cell_reaches_just_what_needs_it(row: int, column: int, touched: set[str]) -> None:
    holed = R.clone()
    holed[row, column] = NAN
    for metric in OF_A_MATRIX:
        expected = any(metric.__name__.startswith(name) for name in touched)
        assert math.isnan(metric(holed)) == expected, metric.__name__


def test_unmeasured_cells_are_left_out_of_the_maximum() -> None:
    holed = R.clone()
    holed[2, 0] = NAN
    assert metrics.forgetting(holed) == pytest.approx(((0.80 - 0.50) + (0.70 - 0.75)) / 2)
    holed[1:3, 0] = NAN
    assert math.isnan(metrics.forgetting(holed))
    assert metrics.forgetting_max_of_all(holed) == pytest.approx(0.0)


def test_the_published_matrix_of_sequential_fine_tuning() -> None:
    """TRACE, LLaMA-2-7B-chat, 5000 rows: OP 48.7 and BWT -8.3 are what the paper prints."""
    by_task = [
        [0.5, 0.456, 0.448, 0.453, 0.435, 0.442, 0.436, 0.454],
        [0.735, 0.67, 0.658, 0.0, 0.595, 0.577, 0.609],
        [0.523, 0.459, 0.433, 0.446, 0.442, 0.457],
        [0.58, 0.459, 0.509, 0.508, 0.512],
        [0.764, 0.636, 0.45, 0.637],
        [0.383, 0.247, 0.272],
        [0.582, 0.548],
        [0.408],
    ]
    published = torch.full((9, 8), NAN, dtype=torch.float64)
    for task, scores in enumerate(by_task):
        published[task + 1 :, task] = torch.tensor(scores, dtype=torch.float64)
    assert f"{100 * metrics.overall_performance(published):.1f}" == "48.7"
    assert f"{100 * metrics.backward_transfer(published):.1f}" == "-8.3"
    assert metrics.forgetting(published) == pytest.approx(0.578 / 7)
    assert math.isnan(metrics.forward_transfer(published))


@pytest.mark.parametrize("shape", [(3, 3), (3, 4), (5, 3), (4,), (1, 0), (2, 3, 2)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    for metric in OF_A_MATRIX:
        with pytest.raises(ValueError, match=r"R has shape \(.*\(T\+1, T\).*Row 0 is the model as loaded"):
            metric(torch.zeros(shape))


@pytest.mark.parametrize("after", [0, 4, -1])
def test_after_has_to_be_a_number_of_learnt_tasks(after: int) -> None:
    with pytest.raises(ValueError, match=rf"after={after} .* Give 1 … 3"):
        metrics.overall_performance(R, after=after)
    with pytest.raises(ValueError, match=rf"after={after} .* Give 1 … 3"):
        metrics.backward_transfer(R, after=after)


def test_the_matrix_is_left_as_it_was_and_any_number_type_will_do() -> None:
    whole = torch.tensor([[0, 0], [1, 0], [0, 1]], requires_grad=False)
    before = whole.clone()
    assert metrics.overall_performance(whole) == 0.5
    assert metrics.forgetting(whole) == 1.0
    assert torch.equal(whole, before)
    assert metrics.overall_performance(R.float().requires_grad_()) == pytest.approx(1.85 / 3)


def test_general_ability_delta() -> None:
    before, after = torch.tensor([0.5, 0.4, 0.9]), torch.tensor([0.2, 0.4, 1.0])
    assert metrics.general_ability_delta(before, after) == pytest.approx((-0.3 + 0.0 + 0.1) / 3)
    assert math.isnan(metrics.general_ability_delta(before, torch.tensor([0.2, NAN, 1.0])))
    assert math.isnan(metrics.general_ability_delta(torch.tensor([]), torch.tensor([])))
    with pytest.raises(ValueError, match=r"before has shape \(3,\) and after \(2,\)"):
        metrics.general_ability_delta(before, after[:2])
