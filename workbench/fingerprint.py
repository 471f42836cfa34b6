"""What a run's inputs were, in a few characters: two runs are comparable only where these are the same."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.benchmark import Task
from workbench.model_folder import SHIPPED, locate

EDGE_BYTES = 1 << 20


def fingerprint_tasks(tasks: Iterable[Task]) -> str:
    """Of every row of every split, by task."""
    digest = hashlib.sha256()
    for task in tasks:
        for split in (task.train, task.validation, task.test):
            digest.update(f"\x1d{task.name}\x1e{len(split)}".encode())
            for row in split:
                digest.update("\x1f".join(str(value) for value in row.values()).encode())
    return digest.hexdigest()[:16]


def fingerprint_model(path: str) -> str:
    """Of a model folder: each file's name, size, first and last megabyte, which tells models apart at once.

    A hub id stands for itself.
    """
    folder = locate(path)
    if isinstance(folder, str):
        return folder
    return _fingerprint_files(sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")))


def fingerprint_named(arguments: Iterable[Any]) -> str:
    """Of whatever files and model folders are named in a strategy's arguments: a corpus, an augmenting model."""
    named = []
    for text in dict.fromkeys(_texts(arguments)):
        path = Path(text).expanduser()
        if text in SHIPPED or path.is_dir():
            named.append(fingerprint_model(text))
        elif path.is_file():
            named.append(_fingerprint_files([path]))
    return hashlib.sha256(" ".join(named).encode()).hexdigest()[:16] if named else "none"


def fingerprint_code(classes: Iterable[Any]) -> str:
    """Of the files in which classes are written: a method that was changed is another one.

    Docstrings, comments, blank lines and imports are left out: what they say changes no number.
    """
    digest = hashlib.sha256()
    for one in classes:
        digest.update(_normalised(_source(one)))
    return digest.hexdigest()[:16]


def fingerprint_source(classes: Iterable[Any]) -> str:
    """Of the same files byte for byte, as it was recorded before docstrings were left out."""
    digest = hashlib.sha256()
    for one in classes:
        digest.update(_source(one))
    return digest.hexdigest()[:16]


def _normalised(source: bytes) -> bytes:
    """A file's syntax tree as text, without docstrings and imports; what is no Python, such as a magic, as it is."""
    try:
        tree = _Bare().visit(ast.parse(source))
    except (SyntaxError, ValueError):
        return source
    return ast.dump(tree).encode()


class _Bare(ast.NodeTransformer):
    """Takes docstrings and imports out of a syntax tree, and each `if` that they leave empty."""

    def generic_visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[int(ast.get_docstring(node, clean=False) is not None) :]
        super().generic_visit(node)
        empty = isinstance(node, ast.If) and not node.body and not node.orelse
        return None if empty or isinstance(node, ast.Import | ast.ImportFrom) else node


def _source(one: Any) -> bytes:
    """The file in which a class is written, or the notebook cell; where neither can be read, its name."""
    try:
        file = inspect.getsourcefile(one)
    except (OSError, TypeError):  # a cell's class has no file, but its hooks know their cell
        cells = [hook.__code__.co_filename for hook in vars(one).values() if inspect.isfunction(hook)]
        text = "".join(line for cell in dict.fromkeys(cells) for line in linecache.getlines(cell))
        return (text or repr(one)).encode()
    return Path(file).read_bytes() if file else repr(one).encode()


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, its collections opened."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.values())
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)


def _fingerprint_files(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\x1f{size}".encode())
        with file.open("rb") as content:
            digest.update(content.read(EDGE_BYTES))
            content.seek(max(0, size - EDGE_BYTES))
            digest.update(content.read(EDGE_BYTES))
    return digest.hexdigest()[:16]
