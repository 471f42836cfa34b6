"""All audited claims, method by method."""

from __future__ import annotations

from audit_case import Case

CASES: tuple[Case, ...] = ()
