"""A folder of tasks, read and checked: everything that is wrong with it is said at once."""

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
    """Sorted names of the folders that hold a task's files, some of them at least.

    Raises:
        ValueError: There is no such folder, or no task in it.
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
    """All rows of some tasks.

    Raises:
        ValueError: Everything that is wrong in any of their files, a line each.
    """
    tasks: dict[str, Splits] = {}
    wrong: list[str] = []
    for name in names:
        tasks[name] = {}
        for split in SPLITS:
            rows, problems = _read_file(folder, f"{name}/{split}.json")
            tasks[name][split] = rows
            wrong += problems
            if split == "test" and not rows and not problems:
                wrong.append(f"{name}/test.json has no rows, so nothing could be measured. {NEEDED}")
    if len(wrong) == 1:
        raise ValueError(wrong[0])
    if wrong:
        raise ValueError("\n- ".join([f"{folder}: {len(wrong)} things are wrong.", *wrong]))
    return tasks


def _read_file(folder: Path, name: str) -> tuple[list[Row], list[str]]:
    """The rows of one file, and what is wrong with it."""
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
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists without an end
        return [], [f"{name} is cut short or is no JSON ({error}). Download or write it again."]
    if not isinstance(content, list):
        return [], [f"{name} holds {_kind(content)}, not a list of rows. {NEEDED}"]
    return _read_rows(name, content)


def _read_rows(name: str, content: list[object]) -> tuple[list[Row], list[str]]:
    """Rows are counted from 1; after a few that are wrong, the others are only counted."""
    rows, wrong = [], []
    for number, row in enumerate(content, start=1):
        if problem := _problem(row):
            wrong.append(f"{name}, row {number}: {problem} {NEEDED}")
        elif isinstance(row, dict):
            rows.append((row["prompt"], row["answer"]))
    if len(wrong) > ROWS_NAMED:
        more = len(wrong) - ROWS_NAMED
        wrong[ROWS_NAMED:] = [f"{name}: {more} more {'row is' if more == 1 else 'rows are'} wrong."]
    return rows, wrong


def _problem(row: object) -> str:
    """What is wrong with a row; nothing, if it can be used."""
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
    """Whether a string can be written as UTF-8, which "\\ud800" in a JSON cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    """What JSON calls it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    kinds = {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return kinds[type(value)]
