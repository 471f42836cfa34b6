"""Read and check a folder of tasks; all problems are reported together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

Row = tuple[str, str]
Splits = dict[str, list[Row]]

SPLITS = ("train", "eval", "test")
NEEDED = 'Each row needs "prompt" and "answer".'
LAYOUT = "Each task needs a folder with train.json, eval.json and test.json."
ROWS_NAMED = 3


def tasks_in(folder: Path) -> list[str]:
    """Return the sorted names of the subfolders that contain at least one file of a task.

    Raises:
        ValueError: The folder does not exist, or contains no task.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder. Give the one that holds the tasks. {LAYOUT}")
    found = sorted(entry.name for entry in folder.iterdir() if _holds_a_split(entry))
    if not found:
        hint = f"It looks like one task; give {folder.parent}. " if _holds_a_split(folder) else ""
        raise ValueError(f"{folder}: there is no task in it. {hint}{LAYOUT}")
    return found


def _holds_a_split(folder: Path) -> bool:
    if folder.name.startswith("."):
        return False
    return any((folder / f"{split}.json").is_file() for split in SPLITS)


def read_tasks(folder: Path, names: Sequence[str]) -> dict[str, Splits]:
    """Return all rows of some tasks, by task and split.

    Raises:
        ValueError: A file is missing or has wrong contents; the message lists all problems, one per line.
    """
    tasks: dict[str, Splits] = {}
    problems: list[str] = []
    for name in names:
        tasks[name] = {}
        for split in SPLITS:
            rows, found = _read_file(folder, f"{name}/{split}.json")
            tasks[name][split] = rows
            problems += found
            if split == "test" and not rows and not found:
                problems.append(f"{name}/test.json has no rows, so nothing could be measured. {NEEDED}")
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        raise ValueError("\n- ".join([f"{folder}: {len(problems)} things are wrong.", *problems]))
    return tasks


def _read_file(folder: Path, name: str) -> tuple[list[Row], list[str]]:
    """Return the rows of one file and its problems."""
    try:
        text = (folder / name).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return [], [f"{name} is missing. {LAYOUT}"]
    except OSError as error:
        return [], [f"{name} cannot be read: {error.strerror}."]
    except UnicodeDecodeError as error:
        return [], [f"{name} is not UTF-8 text (byte {error.start}). Save it as UTF-8, or download it again."]
    if not text.strip():
        return [], [f"{name} is empty. A JSON list of rows is expected. {NEEDED}"]
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        return [], [f"{name} is cut short or is no JSON ({error.msg}, {place}). Download or write it again."]
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or very deep nesting
        return [], [f"{name} is cut short or is no JSON ({error}). Download or write it again."]
    if not isinstance(content, list):
        return [], [f"{name} holds {_kind(content)}, not a list of rows. {NEEDED}"]
    return _read_rows(name, content)


def _read_rows(name: str, content: list[object]) -> tuple[list[Row], list[str]]:
    """Return the valid rows and the problems of the others; rows are counted from 1, only the first are listed."""
    rows, problems = [], []
    for number, row in enumerate(content, start=1):
        if problem := _problem(row):
            problems.append(f"{name}, row {number}: {problem} {NEEDED}")
        elif isinstance(row, dict):
            rows.append((row["prompt"], row["answer"]))
    if len(problems) > ROWS_NAMED:
        more = len(problems) - ROWS_NAMED
        problems[ROWS_NAMED:] = [f"{name}: {more} more {'row is' if more == 1 else 'rows are'} wrong."]
    return rows, problems


def _problem(row: object) -> str:
    """Return the problem of a row; "" if it is valid."""
    if not isinstance(row, dict):
        return f"this is {_kind(row)}, not an object."
    for key in ("prompt", "answer"):
        if key not in row:
            return f'"{key}" is missing.'
        if not isinstance(row[key], str):
            return f'"{key}" is {_kind(row[key])}, not a string.'
        if not _is_text(row[key]):
            return f'"{key}" has half of a surrogate pair in it, which is no character.'
    return ""


def _is_text(value: str) -> bool:
    """Return whether a string can be encoded as UTF-8; "\\ud800" in a JSON file cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    """Return the name of a value's type in JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    kinds = {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return kinds[type(value)]
