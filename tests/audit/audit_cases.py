"""All audited claims, method by method."""

from __future__ import annotations

import adapters
import merging
import prompts
from audit_case import Case

CASES: tuple[Case, ...] = (*adapters.CASES, *prompts.CASES, *merging.CASES)
