"""What a run's records say: its scores and their errors, its matrix, and the whole of it in one row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench import metrics
from workbench.records import Records
from workbench.statistics import binomial_error, op_error

UNMEASURED = (math.nan, 0)


class Measured:
    """What can be asked of one run, whoever reads its records.

    Attributes:
        path: The run's folder.
        records: What was measured.
    """

    path: Path
    records: Records

    def environment(self) -> dict[str, Any]:
        """`environment.json`, or nothing where it is not there yet."""
        return dict(self.records.environment)

    def has_row(self, after: int) -> bool:
        """Whether anything was scored after this many tasks."""
        return any(int(row["after"]) == after for row in self.records.scores)

    def has_cell(self, after: int, on: str) -> bool:
        """Whether a task was scored after this many tasks."""
        return any(int(row["after"]) == after and row["on"] == on for row in self.records.nll)

    def has_within(self, step: int, on: str) -> bool:
        """Whether a task was scored in mid-task, at this step of the sequence."""
        return any(int(row["step"]) == step and row["on"] == on for row in self.records.within)

    def within(self, on: str, metric: str = "") -> list[tuple[int, float]]:
        """A score in mid-task, as (step of the sequence, value); empty where `score_every_n_steps` was not asked for.

        Args:
            on: A domain, a probe or the corpus.
            metric: The primary one unless another is named.
        """
        wanted = metric or self.environment()["protocol"]["primary"][on]
        rows = [row for row in self.records.within if row["on"] == on and row["metric"] == wanted]
        return [(int(row["step"]), float(row["value"])) for row in rows]

    def spent(self, after: int | None, steps: range) -> dict[str, float]:
        """What scoring took: a row of the matrix, and what was scored in mid-task at some steps.

        Args:
            after: The row; None: none.
            steps: Of the sequence.

        Returns:
            "seconds" of both; "decoded_tokens" and "decode_seconds" of the row.
        """
        row = [cell for cell in self.records.spent if after is not None and cell.get("after") == str(after)]
        within = [cell for cell in self.records.spent if "step" in cell and int(cell["step"]) in steps]
        total = {name: sum(cell.get(name, 0) for cell in row) for name in ("decoded_tokens", "decode_seconds")}
        return {"seconds": sum(cell.get("seconds", 0.0) for cell in row + within), **total}

    def value(self, after: int, on: str, metric: str) -> float:
        """One score; NaN where it was not measured."""
        return self.records.cells.get((after, on, metric), UNMEASURED)[0]

    def error(self, after: int, on: str, metric: str) -> float:
        """The standard error of one score: what the finite number of its test rows leaves open.

        As the scorer has recorded it from the rows' scores. Where it has not, as in older folders, √(p(1 − p)/n) if
        value times rows is a whole number, as it is where each row scores 0 or 1; else NaN.
        """
        if (after, on, metric) in self.records.errors:
            return self.records.errors[after, on, metric]
        return binomial_error(*self.records.cells.get((after, on, metric), UNMEASURED))

    def matrix(self) -> Tensor:
        """(T+1, T) primary scores: row 0 is the untouched model, columns follow the run's order."""
        protocol = self.environment()["protocol"]
        order, primary = protocol["order"], protocol["primary"]
        rows = [[self.value(after, task, primary[task]) for task in order] for after in range(len(order) + 1)]
        return torch.tensor(rows, dtype=torch.float64)

    def general(self, after: int) -> list[float]:
        """Primary scores of the probes, which are tested and never trained."""
        protocol = self.environment()["protocol"]
        return [self.value(after, probe, protocol["primary"][probe]) for probe in protocol["probes"]]

    def summary(self) -> dict[str, Any]:
        """The run in one row: measures of the matrix, and all that the run took.

        "OP_error" is the error of OP that the finite test sets leave (`statistics.op_error`). "replay_rows" are rows of
        one pass that are none of the task's own, over all items; "steps" and "tokens" count all passes. Training's
        tokens a second are over all that is no scoring; decoding's, of the last row, over what answering took.
        """
        protocol = self.environment()["protocol"]
        scores = self.matrix()
        probes = torch.tensor([self.general(0), self.general(len(protocol["order"]))], dtype=torch.float64)
        return {
            "strategy": protocol["strategy"],
            "order": protocol["order_name"],
            "seed": protocol["seed"],
            "task_id_at_test": protocol.get("task_id_at_test", False),
            "bound": protocol.get("bound"),
            "trial_of": protocol.get("trial_of"),
            "OP": metrics.overall_performance(scores),
            "BWT": metrics.backward_transfer(scores),
            "FWT": metrics.forward_transfer(scores),
            "forgetting": metrics.forgetting(scores),
            "learning_accuracy": metrics.learning_accuracy(scores),
            "general_delta": metrics.general_ability_delta(*probes),
            "trainable_parameters": max((int(row["trainable_parameters"]) for row in self.records.costs), default=0),
            "added_parameters": max((int(row["added_parameters"]) for row in self.records.costs), default=0),
            "train_seconds": self._total("train_seconds"),
            "eval_seconds": self._total("eval_seconds"),
            "peak_memory_bytes": self.environment().get("peak_memory_bytes") or math.nan,
            "train_tokens_per_second": _rate(self._total("tokens"), self._total("train_seconds")),
            "decoded_tokens_per_second": _rate(self._last("decoded_tokens"), self._last("decode_seconds")),
            "steps": self._total("steps"),
            "tokens": self._total("tokens"),
            "replay_rows": self._total("replay_rows"),
            "disk_bytes": self.disk_bytes(),
            "OP_error": op_error(
                [self.error(len(protocol["order"]), task, protocol["primary"][task]) for task in protocol["order"]]
            ),
        }

    def disk_bytes(self) -> float:
        """What the run's model takes on the disk, all files of `model/`, and of `checkpoint/` while a state is there.

        NaN where there is no model, or no longer; results, such as predictions, are not counted: they are the same
        for every method.
        """
        if not (self.path / "model").is_dir():
            return math.nan
        files = [path for name in ("model", "checkpoint") for path in (self.path / name).rglob("*")]
        return float(sum(path.stat().st_size for path in files if path.is_file()))

    def _total(self, column: str) -> float:
        """Over all items; NaN where an item does not say, as in folders that are older than the column."""
        return sum(float(row.get(column) or math.nan) for row in self.records.costs)

    def _last(self, column: str) -> float:
        return float(self.records.costs[-1].get(column, 0)) if self.records.costs else 0.0


def _rate(count: float, seconds: float) -> float:
    """A count for each second; NaN where nothing was counted, or so little that it took no time."""
    return count / seconds if count and seconds else math.nan
