"""List the classes of a package by their first lines, read from the source: importing them would take seconds."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAMES, HOMES = "__all__", "_HOMES"
"""Variables of a package that resolves its names when they are first used."""


def first_lines(package: str) -> dict[str, str]:
    """Return the first line of the docstring of each public class of a package.

    Args:
        package: Import path of a package that lists its names in `__all__` and the module of each in `_HOMES`, as
            `strategies` and `benchmarks` do. It is not imported.
    """
    spec = find_spec(package)
    file = Path(str(spec.origin if spec else package))
    stated = _assigned(ast.parse(file.read_text(encoding="utf-8")))
    return {name: _first_line(file.parent, stated[HOMES][name], name) for name in stated[NAMES]}


def _assigned(tree: ast.Module) -> dict[str, Any]:
    """Return the variables of a module that have a plain value."""
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = ast.literal_eval(node.value)
    return values


def _first_line(folder: Path, module: str, name: str) -> str:
    """Return the first line of a class's docstring, from the file that defines it; "" if it is not found.

    Args:
        folder: Of the package that `module` is in.
        module: A module, or a package that imports the class from one of its modules.
        name: Of the class.
    """
    file = folder.joinpath(*module.split("."))
    inside = file.is_dir()
    tree = ast.parse((file / "__init__.py" if inside else file.with_suffix(".py")).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            path = node.module.split(".")[-1]
            return _first_line(file if inside else file.parent, path, name)
    return ""
