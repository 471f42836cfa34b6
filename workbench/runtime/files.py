"""Atomic and durable files, folder locks, checksums and CSV."""

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

CHUNK_BYTES = 1 << 20
_locks: list[BaseFileLock] = []


def write_whole(path: Path, text: str) -> None:
    """Replace a file's content atomically: a reader, or a crash, sees the old text or the new one.

    Args:
        path: The file; missing parent folders are created.
        text: The new content.
    """
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
    """Make creations, renames and deletions in a folder survive a power loss."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(file: Path) -> None:
    """Make a file's content survive a power loss."""
    with file.open("rb+") as content:
        os.fsync(content.fileno())


def sync_tree(folder: Path) -> None:
    """Make all files of a folder survive a power loss."""
    for path in sorted(folder.rglob("*")):
        sync_folder(path) if path.is_dir() else sync_file(path)
    sync_folder(folder)


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of_text(text: str) -> str:
    """Return the SHA-256 of a text as `write_whole` writes it."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes within the context; the lock ends with the process.

    Args:
        folder: Created if it does not exist.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"{folder} is in use by another process. Wait for it, or choose another name") from error
    _locks.append(lock)
    try:
        yield
    finally:
        _locks.remove(lock)
        lock.release()


def close_inherited_locks(_: int = 0) -> None:
    """Close file locks inherited from the parent after a fork, so that they end with the parent.

    Usable as a DataLoader's `worker_init_fn`, which passes the worker's number.
    """
    for lock in _locks:
        if lock._context.lock_file_fd is not None:
            os.close(lock._context.lock_file_fd)
    _locks.clear()


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as CSV with a header; floats in full precision, so that reading restores them exactly."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file; none if the file does not exist."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
