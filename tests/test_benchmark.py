"""A few of a benchmark's tasks."""

from __future__ import annotations

import pytest

from benchmarks.mini_trace import MiniTrace
from workbench.benchmark import Benchmark, Subset
from workbench.testing import check_benchmark

WHOLE = MiniTrace(train_rows=8, test_rows=8, validation_rows=0)


def test_a_subset_keeps_its_tasks_in_each_orders_sequence() -> None:
    few = Subset(WHOLE, ["number_cm", "policy_stance"])
    assert isinstance(few, Benchmark)
    assert [few[index].name for index in range(len(few))] == ["policy_stance", "number_cm"]
    assert dict(few.orders) == {
        "default": ["policy_stance", "number_cm"],
        "second": ["number_cm", "policy_stance"],
        "reversed": ["number_cm", "policy_stance"],
    }
    assert few[1] is WHOLE[5]
    assert few.probes is WHOLE.probes
    assert few.general is WHOLE.general
    assert "Every order is a permutation of the tasks." in check_benchmark(few)


def test_tasks_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"tasks: there is no 'number'\. Choose from topic_stance, policy_stance"):
        Subset(WHOLE, ["number"])
    with pytest.raises(ValueError, match=r"tasks: empty\. Name one or more of topic_stance"):
        Subset(WHOLE, [])
