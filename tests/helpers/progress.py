"""Events of a run, as displays receive them."""

from __future__ import annotations

from workbench.display import Display


def one_run(shown: Display) -> None:
    """A run of one task and a probe: rows 0 and 1 of its matrix."""
    shown.run_begins("seqft, order default, seed 0", ["alpha"], ["probe"])
    for after, scores in enumerate(({"alpha": 0.0, "probe": 0.25}, {"alpha": 0.875, "probe": 0.5})):
        if after:
            shown.item_begins("alpha", "task 1 of 1", "8 of 8 parameters")
            shown.steps(1, 2, 1.5)
            shown.steps(2, 2, 0.75)
        shown.scoring(after)
        for name, value in scores.items():
            shown.scored(after, name, value)
    shown.run_ends({"OP": 0.875, "train_seconds": 2.0, "eval_seconds": 1.0})
