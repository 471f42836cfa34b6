"""One run's folder, read and written: the truth from which everything else is rebuilt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.components import ConfigError
from workbench.files import digest_of, digest_of_text, write_whole
from workbench.journal import Journal
from workbench.measured import Measured
from workbench.records import Records

if TYPE_CHECKING:
    from workbench.scoring import TaskScore


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
