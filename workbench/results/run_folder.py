"""The folder of one run: what was measured, and the files that show it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench import metrics
from workbench.errors import ConfigError
from workbench.results.journal import Journal
from workbench.results.protocol import Layout, Protocol, read_stated
from workbench.results.score import TaskScore
from workbench.results.tables import Records
from workbench.runtime.files import digest_of, digest_of_text, write_whole
from workbench.statistics import binomial_error, op_error

UNMEASURED = (math.nan, 0)


class RunFolder:
    """All that one run leaves on disk, each file complete at any moment.

    Measurements go to `journal.jsonl` first, and the other files are generated from it; so a torn or edited file is
    written again, and nothing wrong is ever read. Only predictions and the model are stored once, with their checksums
    in the journal. A folder without a journal is read from its files.

    Args:
        path: Folder of the run; it is created at the first write.
        writes: Whether files are written, or all is only kept in memory: of several processes that train together, one
            writes.

    Attributes:
        path: Folder of the run.
        journal: Its journal.
        records: Its tables.

    Raises:
        ConfigError: The journal is damaged or not understood; without one, a file cannot be read.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path = Path(path)
        self.journal = Journal(self.path / "journal.jsonl", writes)
        self.records = Records() if self.journal.records else Records.from_files(self.path)
        for number, record in enumerate(self.journal.records, 1):
            try:
                self.records.add(record)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                problem = f"{self.journal.file}, line {number}, cannot be understood: another version may have written"
                raise ConfigError([f"{problem} it. Delete {self.path} to make the run again."]) from error

    @property
    def finished(self) -> bool:
        """Whether the run is complete: its end is written last, after the final model."""
        if self.journal.records:
            return self.records.model is not None
        return (self.path / "model" / "config.json").is_file()

    # -- reading

    def environment(self) -> dict[str, Any]:
        """Return the content of `environment.json`; empty before it is written."""
        return dict(self.records.environment)

    @property
    def layout(self) -> Layout:
        """Columns of the score matrix; a KeyError names a key that is missing in `environment.json`."""
        return read_stated(Layout, self.records.environment)

    @property
    def protocol(self) -> Protocol:
        """What has to stand beside the run's numbers; a KeyError names a key that is missing in `environment.json`."""
        return read_stated(Protocol, self.records.environment)

    def has_row(self, after: int) -> bool:
        """Return True if anything was scored after this many tasks."""
        return any(int(row["after"]) == after for row in self.records.scores)

    def has_cell(self, after: int, on: str) -> bool:
        """Return True if a task was scored after this many tasks."""
        return any(int(row["after"]) == after and row["on"] == on for row in self.records.nll)

    def has_within(self, step: int, on: str) -> bool:
        """Return True if a task was scored within another task's training, at this step of the sequence."""
        return any(int(row["step"]) == step and row["on"] == on for row in self.records.within)

    def within(self, on: str, metric: str = "") -> list[tuple[int, float]]:
        """Return the scores within training as (optimizer step of the sequence, value).

        Empty unless the study set `score_every_n_steps`.

        Args:
            on: Name of a task, a probe or the corpus.
            metric: Name of the metric; "" for the primary one.
        """
        wanted = metric or self.layout.primary[on]
        rows = [row for row in self.records.within if row["on"] == on and row["metric"] == wanted]
        return [(int(row["step"]), float(row["value"])) for row in rows]

    def spent(self, after: int | None, steps: range) -> dict[str, float]:
        """Return the cost of scoring a row of the matrix and of scoring within training.

        Args:
            after: Row of the matrix; None for no row.
            steps: Optimizer steps of the sequence.

        Returns:
            "seconds" of both; "decoded_tokens" and "decode_seconds" of the row.
        """
        row = [cell for cell in self.records.spent if after is not None and cell.get("after") == str(after)]
        within = [cell for cell in self.records.spent if "step" in cell and int(cell["step"]) in steps]
        total = {name: sum(cell.get(name, 0) for cell in row) for name in ("decoded_tokens", "decode_seconds")}
        return {"seconds": sum(cell.get("seconds", 0.0) for cell in row + within), **total}

    def value(self, after: int, on: str, metric: str) -> float:
        """Return one score; NaN where it was not measured."""
        return self.records.cells.get((after, on, metric), UNMEASURED)[0]

    def error(self, after: int, on: str, metric: str) -> float:
        """Return the standard error of one score over the test rows.

        As the scorer recorded it from the rows' scores. Where it did not, as in older folders, √(p(1 − p)/n) if value
        times rows is a whole number, as it is where each row scores 0 or 1; else NaN.
        """
        if (after, on, metric) in self.records.errors:
            return self.records.errors[after, on, metric]
        return binomial_error(*self.records.cells.get((after, on, metric), UNMEASURED))

    def matrix(self) -> Tensor:
        """Return the (T+1, T) primary scores: row 0 is the zero-shot model, columns follow the run's order."""
        layout = self.layout
        rows = [
            [self.value(after, task, layout.primary[task]) for task in layout.order]
            for after in range(len(layout.order) + 1)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def general(self, after: int) -> list[float]:
        """Return the primary scores of the probes, which are tested and never trained."""
        layout = self.layout
        return [self.value(after, probe, layout.primary[probe]) for probe in layout.probes]

    def summary(self) -> dict[str, Any]:
        """Return the run in one row: measures of the matrix, and the run's costs.

        "OP_error" is the standard error of OP over the test rows (`statistics.op_error`). "replay_rows" counts rows of
        one pass that are not the task's own, over all items; "steps" and "tokens" count all passes. Training tokens a
        second exclude scoring; decoded tokens a second are those of the last row, over the time that answering took.
        """
        protocol, scores = self.protocol, self.matrix()
        last = len(protocol.order)
        probes = torch.tensor([self.general(0), self.general(last)], dtype=torch.float64)
        return {
            "strategy": protocol.strategy,
            "order": protocol.order_name,
            "seed": protocol.seed,
            "task_id_at_test": protocol.task_id_at_test,
            "bound": protocol.bound,
            "trial_of": protocol.trial_of,
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
            "OP_error": op_error([self.error(last, task, protocol.primary[task]) for task in protocol.order]),
        }

    def moments(self, strategy: str | None = None) -> dict[str, dict[str, float]]:
        """Return each task's primary score zero-shot, right after it was learnt, and at the end, by row label.

        Probes and the corpus are never learnt. Where tasks are learnt jointly, none has a turn, and that row is empty.

        Args:
            strategy: Its name in a report; None: as the run states it.
        """
        protocol = self.protocol
        name, order, primary = strategy or protocol.strategy, protocol.order, protocol.primary
        learnt = {task: self.value(after, task, primary[task]) for after, task in enumerate(order, start=1)}
        in_turn = not any(map(math.isnan, learnt.values()))
        return {
            "zero-shot": {on: self.value(0, on, primary[on]) for on in protocol.tested},
            f"{name}, learnt": learnt if in_turn else {},
            f"{name}, end": {on: self.value(len(order), on, primary[on]) for on in protocol.tested},
        }

    def disk_bytes(self) -> float:
        """Return the size of the run's model on disk: `model/`, and `checkpoint/` while a state is there.

        NaN where the model was deleted or not saved yet. Results such as predictions are not counted: they are the
        same for every method.
        """
        if not (self.path / "model").is_dir():
            return math.nan
        files = [path for name in ("model", "checkpoint") for path in (self.path / name).rglob("*")]
        return float(sum(path.stat().st_size for path in files if path.is_file()))

    def _total(self, column: str) -> float:
        """Sum a column of `costs.csv` over all items; NaN where a value is missing, as in folders older than it."""
        return sum(float(row.get(column) or math.nan) for row in self.records.costs)

    def _last(self, column: str) -> float:
        return float(self.records.costs[-1].get(column, 0)) if self.records.costs else 0.0

    # -- writing

    def write_config(self, text: str) -> None:
        """Write `config.yaml`, resolved, so that it runs again by itself."""
        if text != self.records.config:
            self._record("config", text=text)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write `environment.json`: versions, hardware, protocol."""
        self._record("environment", section=None, values=environment)

    def add_to_environment(self, section: str, values: Mapping[str, Any]) -> None:
        """Add entries to one section of `environment.json`, unless it has them."""
        old = self.environment().get(section, {})
        if any(name not in old or old[name] != value for name, value in values.items()):
            self._record("environment", section=section, values=values)

    def add_score(self, after: int, score: TaskScore, seconds: float = 0.0) -> None:
        """Add one cell to `scores.csv` and `nll.csv`, and its answers to `predictions/`.

        Args:
            after: Row of the matrix.
            score: Scores of the cell.
            seconds: Time that scoring took.
        """
        written = {}
        if score.predictions:
            file = self.path / "predictions" / f"{after}-{score.task}.jsonl"
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in score.predictions)
            self._put(file, text)
            written = {file.name: digest_of_text(text)}
        nats = {"nats_per_token": repr(score.nats_per_token), "tokens": score.tokens}
        self._record("cell", after=after, predictions=written, **nats, **_measured(score, seconds))

    def copy_row(self, after: int, source: RunFolder, names: Sequence[str]) -> None:
        """Copy a row of the matrix from another run's folder, without the time that scoring took there.

        Args:
            after: Row of the matrix.
            source: Folder to copy from.
            names: Names of the columns; those that `source` lacks, or this folder has, are skipped.
        """
        cells = {r["on"]: r for r in source.journal.records if r["kind"] == "cell" and r["after"] == after}
        for record in map(cells.get, names):
            if record and not self.has_cell(after, record["on"]):
                for name in record["predictions"] if self.journal.writes else ():
                    text = (source.path / "predictions" / name).read_text(encoding="utf-8")
                    write_whole(self.path / "predictions" / name, text)
                self._record(**{**record, "spent": {}})

    def add_within(self, step: int, item: str, score: TaskScore, seconds: float = 0.0) -> None:
        """Add scores within the training of an item to `within.csv`; they are no cells of the matrix."""
        self._record("within", step=step, item=item, **_measured(score, seconds))

    def add_steps(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add optimizer steps to `train.csv`: the loss and each penalty, on one axis over the whole sequence.

        Known steps are skipped: a resumed run repeats the last ones, and they are the same.
        """
        known = int(self.records.curve[-1]["step"]) if self.records.curve else 0
        if new := [dict(row) for row in rows if int(row["step"]) > known]:
            self._record("steps", rows=new)

    def add_costs(self, costs: Mapping[str, Any]) -> None:
        """Add the budget of a curriculum item to `costs.csv`: parameters, steps, tokens, seconds."""
        self._record("costs", values=costs)

    def end(self) -> None:
        """Mark the run as complete, with the checksums of its model's files."""
        folder = self.path / "model"
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self._record("end", model={path.relative_to(folder).as_posix(): digest_of(path) for path in files})

    def clear(self) -> None:
        """Delete the run, to begin it again."""
        if self.journal.writes and self.path.exists():
            shutil.rmtree(self.path)
        self.__init__(self.path, self.journal.writes)  # type: ignore[misc]

    def mend(self) -> list[str]:
        """Write again the files that differ from what the journal says they hold.

        Returns:
            Names of the files that were written.

        Raises:
            ConfigError: A file of predictions, or of the final model if it is there, is missing or was changed.
        """
        stored = {self.path / "predictions" / name: digest for name, digest in self.records.predictions.items()}
        if (self.path / "model").is_dir():  # a user may have deleted it to save space
            stored |= {self.path / "model" / name: digest for name, digest in (self.records.model or {}).items()}
        wrong = [file for file, digest in stored.items() if not file.is_file() or digest_of(file) != digest]
        if wrong:
            raise ConfigError([f"{wrong[0]} is not as it was written. Delete {self.path} to make the run again."])
        mended = []
        for name in self.records.names:
            file, text = self.path / name, self.records.text(name).encode()
            if not file.is_file() or file.read_bytes() != text:
                write_whole(file, text.decode())
                mended.append(name)
        return mended

    def _record(self, kind: str, **content: Any) -> None:
        self.journal.append({"kind": kind, **content})
        for name in self.records.add(self.journal.records[-1]):
            self._put(self.path / name, self.records.text(name))

    def _put(self, file: Path, text: str) -> None:
        if self.journal.writes:
            write_whole(file, text)


def _rate(count: float, seconds: float) -> float:
    """Return a count per second; NaN where nothing was counted or no time was measured."""
    return count / seconds if count and seconds else math.nan


def _measured(score: TaskScore, seconds: float) -> dict[str, Any]:
    """Return a score and its cost as the journal holds them; numbers in full precision."""
    spent = {
        "seconds": round(seconds, 3),
        "decoded_tokens": score.decoded_tokens,
        "decode_seconds": round(score.decode_seconds, 3),
    }
    metrics = {name: repr(value) for name, value in score.metrics.items()}
    errors = {"errors": {name: repr(value) for name, value in score.errors.items()}} if score.errors else {}
    return {"on": score.task, "metrics": metrics, **errors, "count": score.count, "spent": spent}
