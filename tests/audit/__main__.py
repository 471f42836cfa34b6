"""Print each audited claim with what the right and the faulty method give; `make audit`.

`python tests/audit --page` prints the rows of the table in docs/pages/audit.md instead.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # the cases use the tests' helpers
from audit_cases import CASES


def main() -> int:
    """Measure all cases; return 1 if a right method fails or a faulty one passes."""
    started, failed = time.monotonic(), 0
    table = Table("method", "has to hold", "fault in public code", "limit", "right", "with the fault", show_lines=True)
    for case in CASES:
        right, wrong = case.distance(case.right), case.distance(case.wrong)
        failed += not right <= case.limit < wrong
        numbers = f"{case.limit:.0e}", f"{right:.1e}", f"{wrong:.2g}"
        table.add_row(case.method, case.claim, case.fault, *numbers)
        if "--page" in sys.argv:
            sys.stdout.write(f"| `{case.method}` | {case.claim} | {case.fault} | {' | '.join(numbers)} |\n")
    if "--page" not in sys.argv:
        Console().print(table)
        Console().print(f"{len(CASES)} claims, {failed} failed; {time.monotonic() - started:.0f} s")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
