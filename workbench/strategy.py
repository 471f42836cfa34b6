"""Base class of continual-learning methods; every hook does nothing by default, so that it is plain fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from datasets import Dataset

    from workbench.backbone import Backbone, Batch, Output
    from workbench.benchmark import Task


OWN = "strategy"
"""Prefix of the names of a strategy's own parameters."""


class HookError(ValueError):
    """Raised when a strategy's hook returns an invalid value."""


class ContinualStrategy(nn.Module):
    """A continual-learning method: subclass it and override the hooks that the method needs.

    Hooks that compute something return it; the three that shape the model (`setup`, `before_task`, `after_task`)
    change the backbone and the strategy's own state, and nothing else. A strategy keeps no reference to the backbone.
    Its buffers follow the device and are saved in checkpoints. Its own parameters, such as a gate, a prompt or a head,
    train beside the backbone's if they require gradients, so freeze those of a teacher. How `setup` and `before_task`
    change the structure may depend only on the arguments and on the tasks begun so far: a resume replays them.

    Attributes:
        reference: The paper, as cited in a table.
        bibtex: The paper's BibTeX entry, for a report's bibliography; empty: `reference` is used.
        task_id_at_test: Whether `answer` or `scoring` uses which task a prompt comes from. Then the scores are not
            comparable with those of methods that do not, and every table says so.
        composable: Whether it may be combined with other strategies in a list.
        bound: The measure that it bounds, such as "OP", if it is a reference and not a continual-learning method;
            None: it is a method. `bounds: true` adds the bounds to a study, and tables mark them.
    """

    reference: ClassVar[str] = ""
    bibtex: ClassVar[str] = ""
    task_id_at_test: ClassVar[bool] = False
    composable: ClassVar[bool] = True
    bound: ClassVar[str | None] = None

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        """Return the items to learn, in order; an inserted task whose name is not in `tasks` is never scored.

        Args:
            tasks: The run's tasks, in its order; their `max_epochs` is this run's number of epochs.
            general: The benchmark's corpus of general text, or None.
        """
        return tasks

    def setup(self, backbone: Backbone) -> None:
        """Set up the model once, before the first task: reshape, wrap, install modules, choose what trains.

        Args:
            backbone: As loaded, or as changed by the strategies before this one in a list.
        """

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Prepare each task, before its optimizer exists: grow, freeze, run a teacher over the batches.

        Args:
            backbone: As it was after the previous task.
            task: The next task.
            batches: Its training rows, in order; empty when a resume replays the hook.
        """

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        """Return the rows of text to train on, where replay mixes in others; without rows the task is not trained.

        A row with a longer answer than the task's limit needs an integer column "max_new_tokens"; where that is None
        or missing, the task's limit applies (see `Task.rows_to_mix`).

        Args:
            task: The next task.
            rows: The task's own rows, or those returned by the strategy before this one in a list.
        """
        return rows

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return scalars in nats, which are added to the language-model loss and logged by name.

        Args:
            backbone: The model that is trained.
            batch: Token ids, mask and labels (batch, time).
            output: The forward pass of this batch: the loss, and on demand the logits at labelled positions.
        """
        return {}

    def edit_gradients(self, backbone: Backbone) -> None:
        """Change `.grad` after accumulation and unscaling, before clipping.

        Args:
            backbone: The model, whose parameters have gradients.
        """

    def after_step(self, backbone: Backbone) -> None:
        """Change the weights after each optimizer step: project the step that was taken, average the weights.

        Args:
            backbone: The model, whose parameters have taken the step and still have its gradients.
        """

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Finish each task, on the device it was trained on: Fisher information, snapshot, memory, merge.

        Args:
            backbone: As trained.
            task: The task that was learnt.
            batches: Its training rows, in order.
        """

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        """Return the model's answers to test prompts, in their order.

        Args:
            backbone: The model, with its adapters folded in.
            task: The prompts' task; a method that uses it has to set `task_id_at_test`.
            prompts: One for each row.
        """
        return backbone.generate(prompts, task.max_new_tokens)

    def scoring(self, backbone: Backbone, task: Task) -> AbstractContextManager[None]:
        """Return a context in which a task is scored: its answers, and the likelihoods of the right ones.

        Args:
            backbone: The model, with its adapters folded in; at the end of the context it has to be as before.
            task: The task; a method that uses it has to set `task_id_at_test`.
        """
        return nullcontext()


class Composition(ContinualStrategy):
    """Several strategies as one: hooks run in order, `training_data` is chained, penalties add up.

    Args:
        members: The strategies, in the order in which they act.

    Raises:
        ValueError: A member is not composable; more than one overrides `answer`; or, in `setup` or `before_task`, one
            freezes a parameter that another trains, or the reverse.
    """

    def __init__(self, members: Sequence[ContinualStrategy]) -> None:
        super().__init__()
        if len(members) > 1 and (alone := [type(member).__name__ for member in members if not member.composable]):
            raise ValueError(f"{alone[0]} cannot be combined with other strategies. Give it alone.")
        own_answer = [type(member).__name__ for member in members if overrides(member, "answer")]
        if len(own_answer) > 1:
            raise ValueError(f"{' and '.join(own_answer)} each answer in their own way; combine at most one.")
        self.members: Sequence[ContinualStrategy] = nn.ModuleList(members)  # type: ignore[assignment]
        self._decisions: Any = WeakIdKeyDictionary()  # parameter: (the member that decided, whether it trains)

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        for member in self.members:
            tasks = checked_items(member, member.curriculum(tasks, general))
        return tasks

    def setup(self, backbone: Backbone) -> None:
        for member in self.members:
            with self._without_conflict(member, backbone):
                member.setup(backbone)

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        for member in self.members:
            with self._without_conflict(member, backbone):
                member.before_task(backbone, task, batches)

    @contextmanager
    def _without_conflict(self, member: ContinualStrategy, backbone: Backbone) -> Iterator[None]:
        """Raise if a member freezes or unfreezes a parameter against another member's decision."""
        before = {id(parameter): parameter.requires_grad for parameter in backbone.model.parameters()}
        yield
        parameters = list(backbone.model.parameters())
        if all(before.get(id(parameter)) == parameter.requires_grad for parameter in parameters):
            return
        for parameter in parameters:
            owner, trains = self._decisions.get(parameter, (member, parameter.requires_grad))
            if owner is not member and trains != parameter.requires_grad:
                does, did = ("freezes", "trains") if trains else ("trains", "freezes")
                raise ValueError(
                    f"{type(member).__name__} {does} what {type(owner).__name__} {did}; combine at most one."
                )
        freezes_some = not all(parameter.requires_grad for parameter in parameters)
        for parameter in parameters:
            if freezes_some:
                self._decisions[parameter] = (member, parameter.requires_grad)
            elif self._decisions.get(parameter, (None,))[0] is member:
                del self._decisions[parameter]

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

    def after_step(self, backbone: Backbone) -> None:
        for member in self.members:
            member.after_step(backbone)

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        for member in self.members:
            member.after_task(backbone, task, batches)

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        for member in self.members:
            if overrides(member, "answer"):
                return checked_answers(member, task, member.answer(backbone, task, prompts), len(prompts))
        return super().answer(backbone, task, prompts)

    @contextmanager
    def scoring(self, backbone: Backbone, task: Task) -> Iterator[None]:
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.scoring(backbone, task))
            yield


def trainable_parameters(backbone: Backbone, strategy: ContinualStrategy) -> dict[str, nn.Parameter]:
    """Return the trainable parameters: the backbone's by name, the strategy's own as "strategy.<name>".

    A strategy's parameter that is installed in the backbone appears once, as the backbone's.

    Args:
        backbone: The model that is trained.
        strategy: The method.
    """
    installed = set(map(id, backbone.model.parameters()))
    own = {
        f"{OWN}.{name}": value
        for name, value in strategy.named_parameters()
        if value.requires_grad and id(value) not in installed
    }
    return {**backbone.trainable(), **own}


def needs_task_id(strategy: ContinualStrategy) -> bool:
    """Return True if a strategy, or a member of a composition, uses the task's identity at test time."""
    return any(module.task_id_at_test for module in strategy.modules() if isinstance(module, ContinualStrategy))


def answers_itself(strategy: ContinualStrategy) -> bool:
    """Return True if a strategy, or a member of a composition, overrides `answer`."""
    return overrides(strategy, "answer")


def overrides(strategy: ContinualStrategy, hook: str) -> bool:
    """Return whether a strategy, or a member of a composition, has a hook of its own.

    Args:
        strategy: The method.
        hook: Name of one of its methods.
    """
    if isinstance(strategy, Composition):
        return any(overrides(member, hook) for member in strategy.members)
    return hook in vars(strategy) or getattr(type(strategy), hook) is not getattr(ContinualStrategy, hook)


def checked_items(strategy: ContinualStrategy, items: Any) -> Sequence[Task]:
    """Return the items that `curriculum` returned if they are a list of tasks.

    Args:
        strategy: The strategy, for the message.
        items: What its hook returned.

    Raises:
        HookError: They are not.
    """
    is_list = isinstance(items, list | tuple)
    wrong = [item for item in (items if is_list else [items]) if not hasattr(item, "scorers")]
    if wrong or not is_list:
        advice = "Return `tasks` where nothing is inserted"
        raise _invalid_return(strategy, "curriculum", items, "a list of tasks", advice, *wrong[:is_list])
    return items  # type: ignore[no-any-return]


def checked_rows(strategy: ContinualStrategy, task: Task, rows: Any) -> Dataset:
    """Return the rows that `training_data` returned if they are a dataset of texts.

    Args:
        strategy: The strategy, for the message.
        task: The task whose rows they are, for the message.
        rows: What its hook returned.

    Raises:
        HookError: They are not.
    """
    hook, advice = f"training_data({task.name!r})", "Return `rows` where nothing is mixed in"
    columns = getattr(rows, "column_names", None)
    if not isinstance(columns, list) or not hasattr(rows, "__len__"):
        raise _invalid_return(strategy, hook, rows, "a datasets.Dataset", advice)
    required = {"text"} if "text" in columns else {"prompt", "answer"}
    types = {name: str(getattr(feature, "dtype", feature)) for name, feature in rows.features.items()}
    if len(rows) and any("string" not in types.get(name, "") for name in required):
        present = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        expected = 'texts in "prompt" and "answer", or in "text" for a corpus'
        raise _invalid_return(strategy, hook, rows, expected, f"Its columns are {present}. {advice}")
    return rows  # type: ignore[no-any-return]


def checked_penalties(strategy: ContinualStrategy, penalties: Any) -> dict[str, Tensor]:
    """Return the penalties that `penalties` returned if they are a dict of scalar tensors.

    Args:
        strategy: The strategy, for the message.
        penalties: What its hook returned.

    Raises:
        HookError: They are not.
    """
    expected = "a dict of scalar tensors by name"
    if not isinstance(penalties, dict):
        raise _invalid_return(strategy, "penalties", penalties, expected, "Return {} where nothing is added")
    for name, value in penalties.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.numel() != 1:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            advice = f"The value of {name!r} is of type {type(value).__name__}{shape}. Return a scalar in nats"
            raise _invalid_return(strategy, "penalties", penalties, expected, advice)
    return penalties


def checked_answers(strategy: ContinualStrategy, task: Task, answers: Any, count: int) -> list[str]:
    """Return the answers that `answer` returned if they are one text for each prompt.

    Args:
        strategy: The strategy, for the message.
        task: The prompts' task, for the message.
        answers: What its hook returned.
        count: Number of prompts.

    Raises:
        HookError: They are not.
    """
    hook, advice = f"answer({task.name!r})", "Give one text for each, in their order"
    is_list = isinstance(answers, list | tuple)
    wrong = [item for item in answers if not isinstance(item, str)] if is_list else [answers]
    if wrong:
        expected = f"a list of texts for {count} prompts"
        raise _invalid_return(strategy, hook, answers, expected, advice, *wrong[:is_list])
    if len(answers) != count:
        counts = f"returned {len(answers)} answers for {count} prompts"
        raise HookError(f"{type(strategy).__name__}.{hook} {counts}. {advice}.")
    return list(answers)


def _invalid_return(
    strategy: ContinualStrategy, hook: str, returned: Any, expected: str, advice: str, *items: Any
) -> HookError:
    """Build the error for a hook's return value; `items` are invalid ones that it contains."""
    contents = "".join(f", which holds an object of type {type(item).__name__}" for item in items)
    description = "None" if returned is None else f"an object of type {type(returned).__name__}{contents}"
    return HookError(f"{type(strategy).__name__}.{hook} returned {description}; expected {expected}. {advice}.")
