"""All audited claims, method by method."""

from __future__ import annotations

import merging
from audit_case import Case

CASES: tuple[Case, ...] = merging.CASES
"""Each audited claim holds for the method, and does not for the method with the fault of public code."""
