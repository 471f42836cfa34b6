"""One run's folder, read and written: the truth from which everything else is rebuilt."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench import metrics
from workbench.files import read_csv, to_csv, write_whole

if TYPE_CHECKING:
    from workbench.scoring import TaskScore

SCORES = ("after", "on", "metric", "value", "count")
WITHIN = ("step", "item", "on", "metric", "value", "count")
COSTS = (
    "item",
    "trainable_parameters",
    "added_parameters",
    "steps",
    "tokens",
    "train_seconds",
    "eval_seconds",
    "decoded_tokens",
    "decode_seconds",
)


class RunFolder:
    """Everything that one run leaves behind, each file whole at any moment.

    Args:
        path: The run's folder; it is made when something is first written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._scores: list[dict[str, Any]] = list(read_csv(self.path / "scores.csv"))
        self._nll: list[dict[str, Any]] = list(read_csv(self.path / "nll.csv"))
        self._costs: list[dict[str, Any]] = list(read_csv(self.path / "costs.csv"))
        self._within: list[dict[str, Any]] = list(read_csv(self.path / "within.csv"))
        self._curve: list[dict[str, Any]] = []
        self._curve_columns = ["step", "item", "loss", "nats_per_token"]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: the final model is written last."""
        return (self.path / "model" / "config.json").is_file()

    def clear(self) -> None:
        """Deletes the run, to begin it again."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.__init__(self.path)  # type: ignore[misc]

    # -- what a run writes

    def write_config(self, text: str) -> None:
        """`config.yaml`: resolved; it runs again by itself."""
        write_whole(self.path / "config.yaml", text)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """`environment.json`: versions, hardware, protocol."""
        write_whole(self.path / "environment.json", json.dumps(environment, indent=2, ensure_ascii=False) + "\n")

    def add_to_environment(self, section: str, values: Mapping[str, Any]) -> None:
        """Adds entries to one section of `environment.json`."""
        environment = self.environment()
        environment.setdefault(section, {}).update(values)
        self.write_environment(environment)

    def add_score(self, after: int, score: TaskScore) -> None:
        """Adds one cell to `scores.csv` and `nll.csv`, and its answers to `predictions/`."""
        cell = {"after": after, "on": score.task}
        self._scores += [
            {**cell, "metric": name, "value": repr(value), "count": score.count}
            for name, value in score.metrics.items()
        ]
        nll = {"metric": "nats_per_token", "value": repr(score.nats_per_token), "count": score.tokens}
        self._nll.append({**cell, **nll})
        if score.predictions:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in score.predictions)
            write_whole(self.path / "predictions" / f"{after}-{score.task}.jsonl", lines)
        write_whole(self.path / "nll.csv", to_csv(SCORES, self._nll))
        write_whole(self.path / "scores.csv", to_csv(SCORES, self._scores))

    def copy_row(self, after: int, source: RunFolder) -> None:
        """Takes over all that was measured after one task from another run's folder."""
        self._scores += [row for row in source._scores if int(row["after"]) == after]
        self._nll += [row for row in source._nll if int(row["after"]) == after]
        for file in sorted((source.path / "predictions").glob(f"{after}-*.jsonl")):
            write_whole(self.path / "predictions" / file.name, file.read_text(encoding="utf-8"))
        write_whole(self.path / "nll.csv", to_csv(SCORES, self._nll))
        write_whole(self.path / "scores.csv", to_csv(SCORES, self._scores))

    def add_within(self, step: int, item: str, score: TaskScore) -> None:
        """Adds what was scored in the middle of a task to `within.csv`; it enters no matrix."""
        cell = {"step": step, "item": item, "on": score.task, "count": score.count}
        self._within += [{**cell, "metric": name, "value": repr(value)} for name, value in score.metrics.items()]
        write_whole(self.path / "within.csv", to_csv(WITHIN, self._within))

    def add_steps(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds steps to `train.csv`: the loss and each penalty, on one axis over the whole sequence."""
        self._curve += [dict(row) for row in rows]
        self._curve_columns = list(dict.fromkeys([*self._curve_columns, *(name for row in rows for name in row)]))
        write_whole(self.path / "train.csv", to_csv(self._curve_columns, self._curve))

    def add_costs(self, costs: Mapping[str, Any]) -> None:
        """Adds a curriculum item's budget to `costs.csv`: parameters, steps, tokens, seconds."""
        self._costs.append(dict(costs))
        write_whole(self.path / "costs.csv", to_csv(COSTS, self._costs))

    # -- what can be read from it

    def environment(self) -> dict[str, Any]:
        """`environment.json`, or nothing where it is not there yet."""
        file = self.path / "environment.json"
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    def has_row(self, after: int) -> bool:
        """Whether anything was scored after this many tasks."""
        return any(int(row["after"]) == after for row in self._scores)

    def value(self, after: int, on: str, metric: str) -> float:
        """One score; NaN where it was not measured."""
        for row in self._scores:
            if int(row["after"]) == after and row["on"] == on and row["metric"] == metric:
                return float(row["value"])
        return math.nan

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
        """The run in one row: measures of the matrix, parameters, seconds, memory and speed.

        Training's tokens a second are those of all items, over all that is no scoring; decoding's are those of the
        last row's answers, over what the strategy took to give them.
        """
        protocol = self.environment()["protocol"]
        scores = self.matrix()
        probes = torch.tensor([self.general(0), self.general(len(protocol["order"]))], dtype=torch.float64)
        return {
            "strategy": protocol["strategy"],
            "order": protocol["order_name"],
            "seed": protocol["seed"],
            "task_id_at_test": protocol.get("task_id_at_test", False),
            "OP": metrics.overall_performance(scores),
            "BWT": metrics.backward_transfer(scores),
            "FWT": metrics.forward_transfer(scores),
            "forgetting": metrics.forgetting(scores),
            "learning_accuracy": metrics.learning_accuracy(scores),
            "general_delta": metrics.general_ability_delta(*probes),
            "trainable_parameters": max((int(row["trainable_parameters"]) for row in self._costs), default=0),
            "added_parameters": max((int(row["added_parameters"]) for row in self._costs), default=0),
            "train_seconds": self._total("train_seconds"),
            "eval_seconds": self._total("eval_seconds"),
            "peak_memory_bytes": self.environment().get("peak_memory_bytes") or math.nan,
            "train_tokens_per_second": _rate(self._total("tokens"), self._total("train_seconds")),
            "decoded_tokens_per_second": _rate(self._last("decoded_tokens"), self._last("decode_seconds")),
        }

    def _total(self, column: str) -> float:
        return sum(float(row[column]) for row in self._costs)

    def _last(self, column: str) -> float:
        return float(self._costs[-1].get(column, 0)) if self._costs else 0.0


def _rate(count: float, seconds: float) -> float:
    """A count for each second; NaN where nothing was counted, or so little that it took no time."""
    return count / seconds if count and seconds else math.nan
