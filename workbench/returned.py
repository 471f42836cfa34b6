"""What the hooks of a strategy returned: taken where it is of the right kind, refused in words where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset

    from workbench.benchmark import Task
    from workbench.strategy import ContinualStrategy


class HookError(ValueError):
    """A hook of a strategy returned what it may not return."""


def checked_items(strategy: ContinualStrategy, items: Any) -> Sequence[Task]:
    """What `curriculum` returned, if it is a list of tasks.

    Raises:
        HookError: It is not.
    """
    listed = isinstance(items, list | tuple)
    wrong = [item for item in (items if listed else [items]) if not hasattr(item, "scorers")]
    if wrong or not listed:
        advice = "Return `tasks` where nothing is inserted"
        raise _refused(strategy, "curriculum", items, "a list of tasks", advice, *wrong[:listed])
    return items  # type: ignore[no-any-return]


def checked_rows(strategy: ContinualStrategy, task: Task, rows: Any) -> Dataset:
    """What `training_data` returned, if it is a dataset of texts.

    Raises:
        HookError: It is not.
    """
    hook, advice = f"training_data({task.name!r})", "Return `rows` where nothing is mixed in"
    columns = getattr(rows, "column_names", None)
    if not isinstance(columns, list) or not hasattr(rows, "__len__"):
        raise _refused(strategy, hook, rows, "a datasets.Dataset", advice)
    wanted = {"text"} if "text" in columns else {"prompt", "answer"}
    kinds = {name: str(getattr(feature, "dtype", feature)) for name, feature in rows.features.items()}
    if len(rows) and any("string" not in kinds.get(name, "") for name in wanted):
        there = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        expected = 'texts in "prompt" and "answer", or in "text" for a corpus'
        raise _refused(strategy, hook, rows, expected, f"Its columns are {there}. {advice}")
    return rows  # type: ignore[no-any-return]


def checked_penalties(strategy: ContinualStrategy, penalties: Any) -> dict[str, Tensor]:
    """What `penalties` returned, if it is scalars by name.

    Raises:
        HookError: It is not.
    """
    expected = "a dict of scalar tensors by name"
    if not isinstance(penalties, dict):
        raise _refused(strategy, "penalties", penalties, expected, "Return {} where nothing is added")
    for name, value in penalties.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.numel() != 1:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            advice = f"The value of {name!r} is of type {type(value).__name__}{shape}. Return a scalar in nats"
            raise _refused(strategy, "penalties", penalties, expected, advice)
    return penalties


def checked_answers(strategy: ContinualStrategy, task: Task, answers: Any, count: int) -> list[str]:
    """What `answer` returned, if it is a text for each prompt.

    Raises:
        HookError: It is not.
    """
    hook, advice = f"answer({task.name!r})", "Give one text for each, in their order"
    listed = isinstance(answers, list | tuple)
    wrong = [item for item in answers if not isinstance(item, str)] if listed else [answers]
    if wrong:
        raise _refused(strategy, hook, answers, f"a list of texts for {count} prompts", advice, *wrong[:listed])
    if len(answers) != count:
        told = f"{type(strategy).__name__}.{hook} returned {len(answers)} answers for {count} prompts. {advice}."
        raise HookError(told)
    return list(answers)


def _refused(
    strategy: ContinualStrategy, hook: str, returned: Any, expected: str, advice: str, *inside: Any
) -> HookError:
    """Says which hook returned what, and what it should return."""
    holder = "".join(f", which holds an object of type {type(item).__name__}" for item in inside)
    told = "None" if returned is None else f"an object of type {type(returned).__name__}{holder}"
    return HookError(f"{type(strategy).__name__}.{hook} returned {told}; expected {expected}. {advice}.")
