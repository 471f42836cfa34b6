"""`Trace`: the tasks of a folder, in TRACE's orders and with its protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    """TRACE, from a folder of one of its releases; or any folder that is laid out in the same way.

    A task of TRACE's is scored as TRACE scores it, with prompts of 1024 tokens and answers of 512. Tasks that
    are not TRACE's are scored by exact match and ROUGE-L, with prompts as long as the model takes and answers
    of 64 tokens. They come last in its orders, as `tasks` lists them, else by name; where there are no others,
    that is the one order, "default".

    FOMC was released with its test rows as eval rows. Where that is so, its validation rows are taken from
    train: every tenth prompt, with all its copies. They leave train only where validation rows are scored. Where
    only some eval rows are test rows, as in the release of 500, these are left out of validation and train stays
    whole. `overlaps`, or `print(trace)`, says how many, and what else the files share.

    Args:
        path: The folder that holds one folder per task.
        tasks: Names of the tasks to use; by default TRACE's tasks that are there or, if none is, all.
        max_new_tokens: The longest answer, in tokens, generated or learnt from: one number, or one per task.
            By default the protocol's 512 for TRACE's tasks, of which a label needs two or three, and 64 for
            others, of which a longer answer is cut off.
        protocol: "own": prompt and answer are tokenised apart, and each task has an optimizer of its own.
            "published": as TRACE's code does it (`benchmarks.trace.protocol`). `data.tokenization` and
            `carry_optimizer` in a config win over it.

    Raises:
        ValueError: The folder, a task or a file is missing, or a file's content is not as it should be; or there is
            no such protocol.
    """

    def __init__(
        self,
        path: str | Path,
        tasks: Sequence[str] | None = None,
        max_new_tokens: Mapping[str, int] | int | None = None,
        protocol: Literal["own", "published"] = "own",
    ) -> None:
        check_names("protocol", [protocol], PROTOCOLS)
        self.protocol = PROTOCOLS[protocol]
        folder = Path(path).expanduser()
        names = _chosen(tasks_in(folder), tasks)
        self.orders: dict[str, tuple[str, ...]] = _orders(names)
        self.probes: tuple[Task, ...] = ()
        self.general: Task | None = None
        first = next(iter(self.orders.values()))
        longest = _longest_answers(first, max_new_tokens)
        contents = read_tasks(folder, first)
        overlaps, built = [], []
        for name in first:
            splits, overlap = contents[name], overlap_of(name, contents[name])
            without_validation = None
            if name == TESTED_BY_ITS_EVAL:
                splits, without_validation, overlap = with_own_validation(splits, overlap)
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
    if wanted is None:
        return [name for name in found if name in MAX_EPOCHS] or list(found)
    if isinstance(wanted, str):
        raise ValueError(f"tasks={wanted!r} is one string. Give a list of names: [{wanted!r}].")
    check_names("tasks", wanted, found)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"tasks={list(wanted)!r} is empty or names a task twice. Choose from {', '.join(found)}.")
    return list(wanted)


def _orders(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    others = tuple(name for name in names if name not in MAX_EPOCHS)
    if len(others) == len(names):
        return {"default": others}
    return {key: tuple(name for name in order if name in names) + others for key, order in ORDERS.items()}


def _longest_answers(names: Sequence[str], given: Mapping[str, int] | int | None) -> dict[str, int]:
    """Tokens for each task."""
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
