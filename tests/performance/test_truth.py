"""Before any speed: the workbench's training is HF Trainer's, step for step."""

from __future__ import annotations

import warnings

import pytest
from paired import Line, ratios
from training import largest_difference


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_losses_are_those_of_hf_trainer(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HF Trainer's own
        assert largest_difference(method, 64, 1, steps=20, rows=2) <= 1e-5


def test_a_line_says_median_spread_and_whether_the_bar_is_reached() -> None:
    line = Line("a / b", ratios([2.0, 3.0, 8.0], [1.0, 2.0, 2.0]), bar=2.5)
    assert (line.median, line.holds) == (2.0, False)
    assert str(line) == "a / b: 2.00 × (1.50 to 4.00, 3 runs; ≥ 2.5: NO)"
    assert Line("a / b", [2.0], bar=2.5, at_least=False).holds
