"""Each audited claim holds for the method, and does not for the method with the fault of public code."""

from __future__ import annotations

import pytest
from audit_case import Case
from audit_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}: {case.claim}")
def test_the_method_is_right_and_the_fault_is_seen(case: Case) -> None:
    assert case.distance(case.right) <= case.limit
    assert case.distance(case.wrong) > case.limit
