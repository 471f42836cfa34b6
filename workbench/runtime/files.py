"""Files that are there whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

PIECE = 1 << 20
_held: list[BaseFileLock] = []


def write_whole(path: Path, text: str) -> None:
    """Replaces a file's content in one step: a reader, or a crash, sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes what was created, renamed or deleted in a folder survive a loss of power."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(file: Path) -> None:
    """Makes a file's content survive a loss of power."""
    with file.open("rb+") as content:
        os.fsync(content.fileno())


def sync_tree(folder: Path) -> None:
    """Makes all files of a folder survive a loss of power."""
    for path in sorted(folder.rglob("*")):
        sync_folder(path) if path.is_dir() else sync_file(path)
    sync_folder(folder)


def digest_of(file: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while piece := content.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def digest_of_text(text: str) -> str:
    """SHA-256 of a text as `write_whole` writes it."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder while the context lasts; a process that dies lets go of it.

    Raises:
        BlockingIOError: Another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"{folder} is in use by another process. Wait for it, or choose another name") from error
    _held.append(lock)
    try:
        yield
    finally:
        _held.remove(lock)
        lock.release()


def let_go(_: int) -> None:
    """Called in a process that was forked: its parent's locks are not its own, and end with the parent."""
    for lock in _held:
        if lock._context.lock_file_fd is not None:
            os.close(lock._context.lock_file_fd)
    _held.clear()


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV text with a header; floats in full precision, so that reading gives them back."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where it is not there yet."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
