"""The places where a method may act; every default does nothing, so that the base class is fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from datasets import Dataset

    from workbench.backbone import Backbone, Batch, Output
    from workbench.benchmark import Task


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


OWN = "strategy"
"""Stands before the names of a strategy's own parameters."""


class ContinualStrategy(nn.Module):
    """A continual-learning method, as the hooks that it needs and no others.

    Hooks that compute return values; the three that shape the model (`setup`, `before_task`,
    `after_task`) change the backbone and the strategy's own state, and nothing else. A strategy stands beside the
    backbone and keeps no reference to it; its buffers follow the device and reach the checkpoint. Its own parameters,
    such as a gate, a prompt or a head, train beside the backbone's wherever they require gradients: freeze those of a
    teacher. What `setup` and `before_task` do to the structure is a function of the arguments and of the tasks begun
    so far.

    Attributes:
        reference: The paper, as one would cite it in a table.
        bibtex: Its BibTeX entry, for a report's bibliography; where there is none, the line above goes there.
        task_id_at_test: Whether `answer` looks at which task a prompt comes from. Then the scores are not
            comparable with those of methods that do not, and every table says so.
        composable: Whether it may stand in a list with others.
        bound: The measure by which it is a yardstick and no method of continual learning, such as "OP"; None: it is a
            method. `bounds: true` adds the yardsticks to a study, and tables mark them.
    """

    reference: ClassVar[str] = ""
    bibtex: ClassVar[str] = ""
    task_id_at_test: ClassVar[bool] = False
    composable: ClassVar[bool] = True
    bound: ClassVar[str | None] = None

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        """What is learnt, in order; an inserted task whose name is not in `tasks` is never scored.

        Args:
            tasks: Those of the run, in its order; `max_epochs` is how often this run passes over a task's rows.
            general: The benchmark's corpus of general text, or None.
        """
        return tasks

    def setup(self, backbone: Backbone) -> None:
        """Once, before the first task: reshape, wrap, install modules, choose what trains.

        Args:
            backbone: As loaded, or as the strategies before this one in a list have left it.
        """

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Before each task, while no optimizer exists: grow, freeze, run a teacher over the batches.

        Args:
            backbone: As the task before has left it.
            task: What comes.
            batches: Of its training rows, in order; none where a run that was stopped makes its structure again.
        """

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        """The rows to train on, of text; replay mixes here. No rows: no training.

        A row whose answer may be longer than this task's says so in an integer column "max_new_tokens"; where that
        is None or not there, the task's own limit applies (see `Task.rows_to_mix`).

        Args:
            task: What comes.
            rows: Its own, or what the strategies before this one in a list have made of them.
        """
        return rows

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Scalars in nats, added to the language-model loss and logged by name.

        Args:
            backbone: What learns.
            batch: Token ids, mask and labels (batch, time).
            output: The backbone's on this batch: the loss, and on demand the logits at labelled positions.
        """
        return {}

    def edit_gradients(self, backbone: Backbone) -> None:
        """Changes `.grad` after accumulation and unscaling, before clipping.

        Args:
            backbone: Whose parameters have gradients.
        """

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """After each task, on the device it was trained on: Fisher, snapshot, memory, merge.

        Args:
            backbone: As it was trained.
            task: What was learnt.
            batches: Of its training rows, in order.
        """

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        """The model's answers at test, in the order of the prompts.

        Args:
            backbone: With its adapters folded in.
            task: Of which a method makes no use, unless it says `task_id_at_test`.
            prompts: One for each row.
        """
        return backbone.generate(prompts, task.max_new_tokens)


class Composition(ContinualStrategy):
    """Several strategies as one: hooks run in order, `training_data` folds, penalties add up.

    Args:
        members: In the order in which they act.

    Raises:
        ValueError: A member stands alone; more than one answers in its own way; in `setup` or `before_task`, one
            freezes what another trains, or trains what another freezes.
    """

    def __init__(self, members: Sequence[ContinualStrategy]) -> None:
        super().__init__()
        if len(members) > 1 and (alone := [type(member).__name__ for member in members if not member.composable]):
            raise ValueError(f"{alone[0]} cannot be combined with other strategies. Give it alone.")
        own_answer = [type(member).__name__ for member in members if _overrides(member, "answer")]
        if len(own_answer) > 1:
            raise ValueError(f"{' and '.join(own_answer)} each answer in their own way; combine at most one.")
        self.members: Sequence[ContinualStrategy] = nn.ModuleList(members)  # type: ignore[assignment]
        self._chosen: Any = WeakIdKeyDictionary()  # a parameter: who said whether it trains, and what

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        for member in self.members:
            tasks = checked_items(member, member.curriculum(tasks, general))
        return tasks

    def setup(self, backbone: Backbone) -> None:
        for member in self.members:
            with self._one_voice(member, backbone):
                member.setup(backbone)

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        for member in self.members:
            with self._one_voice(member, backbone):
                member.before_task(backbone, task, batches)

    @contextmanager
    def _one_voice(self, member: ContinualStrategy, backbone: Backbone) -> Iterator[None]:
        """Sees that what a member says of what trains is not what another has said otherwise."""
        before = {id(parameter): parameter.requires_grad for parameter in backbone.model.parameters()}
        yield
        now = list(backbone.model.parameters())
        if all(before.get(id(parameter)) == parameter.requires_grad for parameter in now):
            return
        for parameter in now:
            owner, trains = self._chosen.get(parameter, (member, parameter.requires_grad))
            if owner is not member and trains != parameter.requires_grad:
                does, did = ("freezes", "trains") if trains else ("trains", "freezes")
                raise ValueError(
                    f"{type(member).__name__} {does} what {type(owner).__name__} {did}; combine at most one."
                )
        restricts = not all(parameter.requires_grad for parameter in now)
        for parameter in now:
            if restricts:
                self._chosen[parameter] = (member, parameter.requires_grad)
            elif self._chosen.get(parameter, (None,))[0] is member:
                del self._chosen[parameter]

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        for member in self.members:
            rows = checked_rows(member, task, member.training_data(task, rows))
        return rows

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for member in self.members:
            for name, value in checked_penalties(member, member.penalties(backbone, batch, output)).items():
                total[name] = total[name] + value if name in total else value
        return total

    def edit_gradients(self, backbone: Backbone) -> None:
        for member in self.members:
            member.edit_gradients(backbone)

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        for member in self.members:
            member.after_task(backbone, task, batches)

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        for member in self.members:
            if _overrides(member, "answer"):
                return checked_answers(member, task, member.answer(backbone, task, prompts), len(prompts))
        return super().answer(backbone, task, prompts)


def trainable_parameters(backbone: Backbone, strategy: ContinualStrategy) -> dict[str, nn.Parameter]:
    """The parameters that train: the backbone's by their name in the model, the strategy's own as "strategy.<name>".

    A parameter that the strategy has installed in the backbone is the backbone's, and counts once.

    Args:
        backbone: What learns.
        strategy: How.
    """
    installed = set(map(id, backbone.model.parameters()))
    own = {
        f"{OWN}.{name}": value
        for name, value in strategy.named_parameters()
        if value.requires_grad and id(value) not in installed
    }
    return {**backbone.trainable(), **own}


def needs_task_id(strategy: ContinualStrategy) -> bool:
    """Whether a strategy, or any member of a composition, is told at test which task it faces."""
    return any(module.task_id_at_test for module in strategy.modules() if isinstance(module, ContinualStrategy))


def answers_itself(strategy: ContinualStrategy) -> bool:
    """Whether a strategy, or a member of a composition, answers otherwise than its model alone would."""
    return _overrides(strategy, "answer")


def _overrides(strategy: ContinualStrategy, hook: str) -> bool:
    if isinstance(strategy, Composition):
        return any(_overrides(member, hook) for member in strategy.members)
    return getattr(type(strategy), hook) is not getattr(ContinualStrategy, hook)
