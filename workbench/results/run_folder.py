"""The folder of one run: its scores, predictions, curves and summary."""

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
from workbench.errors import ConfigError
from workbench.results.journal import Journal
from workbench.results.tables import Records
from workbench.runtime.files import digest_of, digest_of_text, write_whole
from workbench.statistics import binomial_error, op_error

if TYPE_CHECKING:
    from workbench.results.score import TaskScore


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


class RunFolder(Measured):
    """Everything that one run leaves behind, each file whole at any moment.

    What was measured goes to `journal.jsonl` first, and the other files are made from it; so a file that was torn or
    changed is made again, and nothing wrong is ever read. Predictions and the model alone are stored once, with
    their checksums in the journal. A folder without a journal is read from its files.

    Args:
        path: The run's folder; it is made when something is first written.
        writes: Whether anything is written, or all is only kept: of several processes that make a run, one writes.

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
                told = f"{self.journal.file}, line {number}, cannot be understood: another version may have written it."
                raise ConfigError([f"{told} Delete {self.path} to make the run again."]) from error

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: that is written last, after the final model."""
        if self.journal.records:
            return self.records.model is not None
        return (self.path / "model" / "config.json").is_file()

    def clear(self) -> None:
        """Deletes the run, to begin it again."""
        if self.journal.writes and self.path.exists():
            shutil.rmtree(self.path)
        self.__init__(self.path, self.journal.writes)  # type: ignore[misc]

    def mend(self) -> list[str]:
        """Makes again what can be made from the journal and is not as it was written.

        Returns:
            The names of the files that were made again.

        Raises:
            ConfigError: A file of predictions, or of the final model if it is there, is not as it was written.
        """
        kept = {self.path / "predictions" / name: digest for name, digest in self.records.predictions.items()}
        if (self.path / "model").is_dir():  # who needs the room may have deleted it
            kept |= {self.path / "model" / name: digest for name, digest in (self.records.model or {}).items()}
        wrong = [file for file, digest in kept.items() if not file.is_file() or digest_of(file) != digest]
        if wrong:
            raise ConfigError([f"{wrong[0]} is not as it was written. Delete {self.path} to make the run again."])
        mended = []
        for name in self.records.names:
            file, text = self.path / name, self.records.text(name).encode()
            if not file.is_file() or file.read_bytes() != text:
                write_whole(file, text.decode())
                mended.append(name)
        return mended

    # -- what a run writes

    def write_config(self, text: str) -> None:
        """`config.yaml`: resolved; it runs again by itself."""
        if text != self.records.config:
            self._record("config", text=text)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """`environment.json`: versions, hardware, protocol."""
        self._record("environment", section=None, values=environment)

    def add_to_environment(self, section: str, values: Mapping[str, Any]) -> None:
        """Adds entries to one section of `environment.json`, unless they are there."""
        old = self.environment().get(section, {})
        if any(name not in old or old[name] != value for name, value in values.items()):
            self._record("environment", section=section, values=values)

    def add_score(self, after: int, score: TaskScore, seconds: float = 0.0) -> None:
        """Adds one cell to `scores.csv` and `nll.csv`, and its answers to `predictions/`.

        Args:
            after: The row of the matrix.
            score: What was measured.
            seconds: What it took.
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
        """Takes over what was measured on some tasks after one from another run's folder, but what it took."""
        cells = {r["on"]: r for r in source.journal.records if r["kind"] == "cell" and r["after"] == after}
        for record in map(cells.get, names):
            if record and not self.has_cell(after, record["on"]):
                for name in record["predictions"] if self.journal.writes else ():
                    text = (source.path / "predictions" / name).read_text(encoding="utf-8")
                    write_whole(self.path / "predictions" / name, text)
                self._record(**{**record, "spent": {}})

    def add_within(self, step: int, item: str, score: TaskScore, seconds: float = 0.0) -> None:
        """Adds what was scored in the middle of a task to `within.csv`; it enters no matrix."""
        self._record("within", step=step, item=item, **_measured(score, seconds))

    def add_steps(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds steps to `train.csv`, the loss and each penalty, on one axis over the whole sequence.

        Steps that are there are left out: a resumed run makes the last ones again, and they are the same.
        """
        known = int(self.records.curve[-1]["step"]) if self.records.curve else 0
        if new := [dict(row) for row in rows if int(row["step"]) > known]:
            self._record("steps", rows=new)

    def add_costs(self, costs: Mapping[str, Any]) -> None:
        """Adds a curriculum item's budget to `costs.csv`: parameters, steps, tokens, seconds."""
        self._record("costs", values=costs)

    def end(self) -> None:
        """Says that the run came to its end, with the checksums of its model's files."""
        folder = self.path / "model"
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self._record("end", model={path.relative_to(folder).as_posix(): digest_of(path) for path in files})

    def _record(self, kind: str, **content: Any) -> None:
        self.journal.append({"kind": kind, **content})
        for name in self.records.add(self.journal.records[-1]):
            self._put(self.path / name, self.records.text(name))

    def _put(self, file: Path, text: str) -> None:
        if self.journal.writes:
            write_whole(file, text)


def _measured(score: TaskScore, seconds: float) -> dict[str, Any]:
    """What a score and what it took become in the journal; numbers in full precision."""
    spent = {
        "seconds": round(seconds, 3),
        "decoded_tokens": score.decoded_tokens,
        "decode_seconds": round(score.decode_seconds, 3),
    }
    metrics = {name: repr(value) for name, value in score.metrics.items()}
    errors = {"errors": {name: repr(value) for name, value in score.errors.items()}} if score.errors else {}
    return {"on": score.task, "metrics": metrics, **errors, "count": score.count, "spent": spent}


def moments(run: RunFolder, name: str | None = None) -> dict[str, dict[str, float]]:
    """Primary scores untouched, when a domain was learnt, and in the end; probes and the corpus are never learnt.

    Args:
        run: A finished run.
        name: Of its strategy in the report; None: as the run says it.
    """
    protocol = run.environment()["protocol"]
    order, primary, strategy = protocol["order"], protocol["primary"], name or protocol["strategy"]
    tested = [*order, *protocol["probes"], *filter(None, [protocol["general"]])]
    learnt = {name: run.value(after, name, primary[name]) for after, name in enumerate(order, start=1)}
    in_turn = not any(map(math.isnan, learnt.values()))  # where tasks are learnt together, none has a turn
    return {
        "untouched": {name: run.value(0, name, primary[name]) for name in tested},
        f"{strategy}, learnt": learnt if in_turn else {},
        f"{strategy}, end": {name: run.value(len(order), name, primary[name]) for name in tested},
    }
