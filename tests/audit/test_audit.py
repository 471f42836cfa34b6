"""Each audited claim holds for the method, and does not for the method with the fault of public code."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_case import Case
from audit_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}: {case.claim}")
def test_the_method_is_right_and_the_fault_is_seen(case: Case) -> None:
    assert case.distance(case.right) <= case.limit
    assert case.distance(case.wrong) > case.limit


def test_the_page_names_every_case_and_no_other() -> None:
    page = Path(__file__).parents[2] / "docs" / "pages" / "audit.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = [tuple(line.strip("| ").split(" | ")[:3]) for line in lines if line.startswith("| `")]
    assert rows == [(f"`{case.method}`", case.claim, case.fault) for case in CASES]
