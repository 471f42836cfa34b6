"""What analyses on demand have left is read without an engine: means over seeds, and which analyses are asked for."""

from __future__ import annotations

import pytest

from workbench.analysis import Relearning
from workbench.analysis.runner import build_analyses
from workbench.errors import ConfigError
from workbench.report.analyses import knocked_out, relearnt, requested


def test_means_over_seeds_of_what_was_measured() -> None:
    named = {"strategy": "s", "order": "o", "domain": "a"}
    rows = [{**named, "part": "block 1", "change": change} for change in ("-0.25", "-0.75")]
    assert knocked_out(rows)["s", "o"] == {"domains": ["a"], "parts": ["block 1"], "changes": [[-0.5]]}
    known = {"learnt": "0.9", "before": "0.2", "untouched": "0.0", "target": "0.88", "rows": "4", "optimizer": "Adam"}
    known |= {"every": "5", "max_steps": "50", "tolerance": "0.02", "metric": "accuracy"}
    pairs = [("10.0", "40.0", "0.75"), ("20.0", "nan", "nan")]
    rows = [{**named, **known, "steps": a, "steps_untouched": b, "savings": c} for a, b, c in pairs]
    found = relearnt(rows)
    assert found is not None
    assert found["rows"] == [["s", "o", "a", "0.900", "0.200", "0.000", "15.0", "40.0 (1 of 2 reached it)", "0.75"]]
    assert relearnt([]) is None


def test_what_is_asked_for_is_read_as_any_config() -> None:
    given = {"baseline": "lora", "relearning.every": "2", "relearning.tolerance": "0.1", "knock_out": "false"}
    assert requested(given) == {"relearning": {"every": 2, "tolerance": 0.1}, "knock_out": False}
    assert requested({"relearning": "true", "relearning.every": "2"}) == {"relearning": {"every": 2}}
    made = build_analyses(requested(given))
    assert [type(one) for one in made] == [Relearning]
    assert (made[0].every, made[0].max_steps, made[0].tolerance) == (2, 200, 0.1)


def test_a_baseline_has_no_settings() -> None:
    with pytest.raises(ConfigError, match="baseline\\.x: a report has no such key"):
        requested({"baseline.x": "1"})
