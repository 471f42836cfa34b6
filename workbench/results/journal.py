"""Append-only journal of a run, with checksums."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError


class Journal:
    """Append-only file of records, each line with a checksum of everything up to it.

    A torn last line, as a crash or a full disk leaves it, is ignored, and overwritten by the next record. A damaged
    line before it is no accident of writing, and an error.

    Args:
        file: Path of the file; it is created with the first record.
        writes: Whether records are written to the file, or only kept in memory: of several processes one writes.

    Attributes:
        file: Path of the file.
        writes: As above.
        records: Records, oldest first.

    Raises:
        ConfigError: A line before the last is damaged.
    """

    def __init__(self, file: Path, writes: bool = True) -> None:
        self.file = file
        self.writes = writes
        self.records: list[dict[str, Any]] = []
        self._sums: list[int] = []
        self._size = 0
        lines = file.read_bytes().split(b"\n") if file.is_file() else []
        for number, line in enumerate(lines[:-1], 1):  # a line without an end is torn
            if not self._take(line):
                if any(lines[number:]):
                    raise ConfigError([f"{file}, line {number}, is damaged. Delete {file.parent} to make it again."])
                break

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is on disk when this returns."""
        line = json.dumps(record, ensure_ascii=False)
        total = zlib.crc32(line.encode(), self.checksum)
        if self.writes:
            self._write(f"{total:08x} {line}\n")
        self.records.append(json.loads(line))
        self._sums.append(total)

    def _write(self, text: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as file:
            if file.tell() != self._size:
                file.truncate(self._size)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()

    @property
    def checksum(self) -> int:
        """Checksum of all records."""
        return self._sums[-1] if self._sums else 0

    def has(self, count: int, checksum: int) -> bool:
        """Return True if the first `count` records have this checksum."""
        return count == 0 or (count <= len(self._sums) and self._sums[count - 1] == checksum)

    def _take(self, line: bytes) -> bool:
        """Read a line; return False if it is torn or damaged."""
        stated, _, content = line.partition(b" ")
        total = zlib.crc32(content, self.checksum)
        if stated != f"{total:08x}".encode():
            return False
        try:
            self.records.append(json.loads(content))
        except (ValueError, RecursionError):
            return False
        self._sums.append(total)
        self._size += len(line) + 1
        return True
