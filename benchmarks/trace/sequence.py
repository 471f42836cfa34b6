"""The benchmark Trace: the tasks of a folder, with TRACE's orders and protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from benchmarks.trace.files import Row, Splits, read_tasks, tasks_in
from benchmarks.trace.names import check_names
from benchmarks.trace.overlaps import overlap_of, with_own_validation
from benchmarks.trace.protocol import PROTOCOLS
from benchmarks.trace.scoring import scorers_for
from workbench.benchmark import Task, dataset_of_pairs

ORDERS = {
    "1": ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"),
    "2": ("NumGLUE-cm", "NumGLUE-ds", "FOMC", "20Minuten", "C-STANCE", "Py150", "MeetingBank", "ScienceQA"),
}
MAX_EPOCHS = dict(zip(ORDERS["1"], (5, 3, 7, 5, 3, 5, 5, 7), strict=True))
MAX_PROMPT_LENGTH = 1024
MAX_NEW_TOKENS = 512
MAX_NEW_TOKENS_ELSEWHERE = 64
TESTED_BY_ITS_EVAL = "FOMC"
OPTIONS = {"C-STANCE": "ABC", "FOMC": "ABC", "ScienceQA": "ABCDE"}


class Trace:
    """TRACE, read from a folder of one of its releases, or from any folder with the same layout.

    TRACE's tasks are scored as in TRACE, with prompts of at most 1024 and answers of at most 512 tokens. Other tasks
    are scored by exact match and ROUGE-L, with prompts up to the model's limit and answers of at most 64 tokens. In
    the orders "1" and "2" they come last, in the order of `tasks` or alphabetically; if all tasks are of this kind,
    there is one order, "default".

    FOMC was released with its test rows as eval rows. If that is so, its validation rows are taken from train: every
    tenth prompt, with all rows that have it. They are removed from train only if validation rows are scored. If only
    some eval rows are test rows, as in the release of 500 rows, these are dropped and train is unchanged. `overlaps`
    and `print(trace)` give the numbers.

    Args:
        path: Folder with one subfolder per task.
        tasks: Names of the tasks to use. None: TRACE's tasks in the folder or, if there is none, all.
        max_new_tokens: Maximum length of an answer in tokens, in training and in generation; one number, or one per
            task. None: 512 for TRACE's tasks (a label needs two or three), 64 for others.
        protocol: "own": prompt and answer are tokenized separately, and each task has its own optimizer.
            "published": as in TRACE's code (`benchmarks.trace.protocol`). `data.tokenization` and `carry_optimizer`
            in a config take precedence.
        train_rows: Number of training rows of each task, the first ones of its file. None: all.
        validation_rows: Number of validation rows of each task, the same way.
        test_rows: Number of test rows of each task, the same way.
        probes: Tasks that are tested and never trained, such as `benchmarks.everyday.questions`.
        general: A corpus of general text, such as `benchmarks.everyday.text`.

    Raises:
        ValueError: The folder, a task or a file is missing, a file has wrong contents, a number of rows is below 1,
            or `protocol` has another value.
    """

    def __init__(
        self,
        path: str | Path,
        tasks: Sequence[str] | None = None,
        max_new_tokens: Mapping[str, int] | int | None = None,
        protocol: Literal["own", "published"] = "own",
        train_rows: int | None = None,
        validation_rows: int | None = None,
        test_rows: int | None = None,
        probes: Sequence[Task] = (),
        general: Task | None = None,
    ) -> None:
        check_names("protocol", [protocol], PROTOCOLS)
        first_rows = {"train": train_rows, "eval": validation_rows, "test": test_rows}
        _check_rows(first_rows)
        self.protocol = PROTOCOLS[protocol]
        folder = Path(path).expanduser()
        names = _chosen(tasks_in(folder), tasks)
        self.orders: dict[str, tuple[str, ...]] = _orders(names)
        self.probes, self.general = tuple(probes), general
        first = next(iter(self.orders.values()))
        longest = _longest_answers(first, max_new_tokens)
        contents = read_tasks(folder, first)
        overlaps, built = [], []
        for name in first:
            splits, overlap = contents[name], overlap_of(name, contents[name])
            without_validation = None
            if name == TESTED_BY_ITS_EVAL:
                splits, without_validation, overlap = with_own_validation(splits, overlap)
            splits = {split: rows[: first_rows[split]] for split, rows in splits.items()}
            if without_validation is not None:
                without_validation = without_validation[:train_rows]
            if any(first_rows.values()):
                carved = len(splits["eval"]) if overlap.carved else 0
                overlap = replace(overlap_of(name, splits), carved=carved, dropped=overlap.dropped)
            overlaps.append(overlap)
            built.append(_task(name, splits, without_validation, longest[name]))
        self.overlaps = tuple(overlaps)
        self._tasks = tuple(built)

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> Task:
        return self._tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.overlaps))


def _chosen(found: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the tasks to use."""
    if wanted is None:
        return [name for name in found if name in MAX_EPOCHS] or list(found)
    if isinstance(wanted, str):
        raise ValueError(f"tasks={wanted!r} is one string. Give a list of names: [{wanted!r}].")
    check_names("tasks", wanted, found)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"tasks={list(wanted)!r} is empty or names a task twice. Choose from {', '.join(found)}.")
    return list(wanted)


def _orders(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return TRACE's orders of the tasks, with other tasks last."""
    others = tuple(name for name in names if name not in MAX_EPOCHS)
    if len(others) == len(names):
        return {"default": others}
    return {key: tuple(name for name in order if name in names) + others for key, order in ORDERS.items()}


def _check_rows(counts: Mapping[str, int | None]) -> None:
    """Refuse a number of rows below 1."""
    if wrong := [
        f"{'validation' if name == 'eval' else name}_rows={count}"
        for name, count in counts.items()
        if count is not None and count < 1
    ]:
        raise ValueError(f"{', '.join(wrong)}: a split needs at least 1 row. Leave it out to use all rows.")


def _longest_answers(names: Sequence[str], given: Mapping[str, int] | int | None) -> dict[str, int]:
    """Return the maximum answer length of each task in tokens."""
    longest = {name: MAX_NEW_TOKENS if name in MAX_EPOCHS else MAX_NEW_TOKENS_ELSEWHERE for name in names}
    if isinstance(given, int):
        longest = dict.fromkeys(names, given)
    elif given is not None:
        check_names("max_new_tokens", given, dict.fromkeys([*names, *MAX_EPOCHS]))
        longest = {name: given.get(name, longest[name]) for name in names}
    if wrong := [f"{name}: {tokens}" for name, tokens in longest.items() if tokens < 1]:
        raise ValueError(f"max_new_tokens has to be 1 or more ({', '.join(wrong)}).")
    return longest


def _task(name: str, splits: Splits, without_validation: list[Row] | None, max_new_tokens: int) -> Task:
    return Task(
        name=name,
        train=dataset_of_pairs(splits["train"]),
        validation=dataset_of_pairs(splits["eval"]),
        test=dataset_of_pairs(splits["test"]),
        scorers=scorers_for(name),
        max_new_tokens=max_new_tokens,
        max_prompt_length=MAX_PROMPT_LENGTH if name in MAX_EPOCHS else None,
        max_epochs=MAX_EPOCHS.get(name),
        options=tuple(OPTIONS.get(name, "")),
        train_without_validation=None if without_validation is None else dataset_of_pairs(without_validation),
    )
