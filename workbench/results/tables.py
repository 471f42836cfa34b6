"""The tables of a run folder: CSV files and `environment.json`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.runtime.files import read_csv, to_csv

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
    "rows",
    "replay_rows",
)
NUMBERS = {
    "scores.csv": ("after", "value"),
    "nll.csv": ("after", "value"),
    "within.csv": ("step", "value"),
    "costs.csv": ("trainable_parameters", "added_parameters", "tokens", "train_seconds", "eval_seconds"),
    "train.csv": ("step",),
}
CURVE = ("step", "item", "loss", "nats_per_token")


class Records:
    """Tables of one run, rows in the order in which they were measured.

    Attributes:
        scores: Rows of `scores.csv`; all values are text, as in the file.
        nll: Rows of `nll.csv`.
        within: Rows of `within.csv`.
        costs: Rows of `costs.csv`.
        curve: Rows of `train.csv`.
        environment: Content of `environment.json`.
        config: Text of `config.yaml`; None before it is written.
        errors: Standard error of a score by (after, on, metric), where the scorer has one; in the journal only.
        spent: Seconds, decoded tokens and decoding seconds of each cell and of each score within training.
        predictions: SHA-256 of each file of predictions, by its name.
        model: SHA-256 of each file of the final model; None before the run's end.
    """

    def __init__(self) -> None:
        self.scores: list[dict[str, str]] = []
        self.nll: list[dict[str, str]] = []
        self.within: list[dict[str, str]] = []
        self.costs: list[dict[str, str]] = []
        self.curve: list[dict[str, str]] = []
        self.environment: dict[str, Any] = {}
        self.config: str | None = None
        self.errors: dict[tuple[int, str, str], float] = {}
        self.spent: list[dict[str, Any]] = []
        self._cells: tuple[int, dict[tuple[int, str, str], tuple[float, int]]] = (0, {})
        self.predictions: dict[str, str] = {}
        self.model: dict[str, str] | None = None

    @classmethod
    def from_files(cls, folder: Path) -> Records:
        """Read the tables of a folder without a journal.

        Raises:
            ConfigError: A file is damaged or has other columns.
        """
        records = cls()
        for name in ("scores", "nll", "within", "costs"):
            setattr(records, name, _read(folder / f"{name}.csv", _table))
        records.curve = _read(folder / "train.csv", _table)
        file = folder / "environment.json"
        records.environment = _read(file, _sections) if file.is_file() else {}
        return records

    def add(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """Add a record of the journal.

        Args:
            record: Its "kind" names one of the methods below.

        Returns:
            Names of the files that change.
        """
        return tuple(getattr(self, f"_add_{record['kind']}")(record))

    @property
    def cells(self) -> dict[tuple[int, str, str], tuple[float, int]]:
        """Scores and their number of rows by (after, on, metric); the first, where one was measured twice."""
        if self._cells[0] != len(self.scores):
            cells: dict[tuple[int, str, str], tuple[float, int]] = {}
            for row in self.scores:
                key = int(row["after"]), row["on"], row["metric"]
                cells.setdefault(key, (float(row["value"]), int(row["count"] or 0)))
            self._cells = len(self.scores), cells
        return self._cells[1]

    def text(self, name: str) -> str:
        """Return the content of a file."""
        if name == "config.yaml":
            return self.config or ""
        if name == "environment.json":
            return json.dumps(self.environment, indent=2, ensure_ascii=False) + "\n"
        if name == "train.csv":
            return to_csv(list(dict.fromkeys([*CURVE, *(key for row in self.curve for key in row)])), self.curve)
        columns = {"scores.csv": SCORES, "nll.csv": SCORES, "within.csv": WITHIN, "costs.csv": COSTS}[name]
        return to_csv(columns, getattr(self, name.removesuffix(".csv")))

    @property
    def names(self) -> list[str]:
        """Names of the files that are not empty."""
        contents: Mapping[str, Any] = {
            "scores.csv": self.scores,
            "nll.csv": self.nll,
            "within.csv": self.within,
            "costs.csv": self.costs,
            "train.csv": self.curve,
            "environment.json": self.environment,
            "config.yaml": self.config,
        }
        return [name for name, content in contents.items() if content]

    def _add_config(self, record: Mapping[str, Any]) -> Sequence[str]:
        self.config = str(record["text"])
        return ("config.yaml",)

    def _add_environment(self, record: Mapping[str, Any]) -> Sequence[str]:
        if record["section"] is None:
            self.environment = dict(record["values"])
        else:
            self.environment.setdefault(record["section"], {}).update(record["values"])
        return ("environment.json",)

    def _add_cell(self, record: Mapping[str, Any]) -> Sequence[str]:
        cell = {"after": str(record["after"]), "on": record["on"]}
        count = {"count": str(record["count"])}
        self.scores += [{**cell, "metric": name, "value": value, **count} for name, value in record["metrics"].items()]
        nll = {"metric": "nats_per_token", "value": record["nats_per_token"], "count": str(record["tokens"])}
        self.nll.append({**cell, **nll})
        self.predictions |= record["predictions"]
        for name, error in record.get("errors", {}).items():
            self.errors[int(record["after"]), record["on"], name] = float(error)
        self.spent.append({**cell, **record["spent"]})
        return ("nll.csv", "scores.csv")

    def _add_within(self, record: Mapping[str, Any]) -> Sequence[str]:
        cell = {"step": str(record["step"]), "item": record["item"], "on": record["on"]}
        count = {"count": str(record["count"])}
        self.within += [{**cell, "metric": name, "value": value, **count} for name, value in record["metrics"].items()]
        self.spent.append({**cell, **record["spent"]})
        return ("within.csv",)

    def _add_steps(self, record: Mapping[str, Any]) -> Sequence[str]:
        self.curve += [{key: str(value) for key, value in row.items()} for row in record["rows"]]
        return ("train.csv",)

    def _add_costs(self, record: Mapping[str, Any]) -> Sequence[str]:
        self.costs.append({key: str(value) for key, value in record["values"].items()})
        return ("costs.csv",)

    def _add_end(self, record: Mapping[str, Any]) -> Sequence[str]:
        self.model = dict(record["model"])
        return ()


def _read(file: Path, reader: Callable[[Path], Any]) -> Any:
    """Read a file; raise a ConfigError with its name where it is damaged."""
    try:
        return reader(file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        problem = f"{file} cannot be read ({type(error).__name__}: {error})."
        raise ConfigError([f"{problem} Delete {file.parent} to make the run again."]) from error


def _table(file: Path) -> list[dict[str, str]]:
    """Read a table and check that its numbers are numbers."""
    rows = read_csv(file)
    for row in rows:
        for name in NUMBERS[file.name]:
            int(row[name]) if name in ("after", "step") else float(row[name])
    return rows


def _sections(file: Path) -> dict[str, Any]:
    """Read `environment.json` and check that it and its sections are objects."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {type(content).__name__}")
    for name in ("protocol", "inputs", "versions"):
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f"expected an object as {name}, got {type(content[name]).__name__}")
    return content
