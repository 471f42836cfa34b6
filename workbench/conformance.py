"""The suites that a strategy and a benchmark have to pass."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial

from workbench.backbone import Backbone
from workbench.benchmark import Benchmark, Task
from workbench.errors import describe_error
from workbench.orders import benchmark_problems
from workbench.strategy import Composition, ContinualStrategy, answers_itself
from workbench.strategy_checks import STRATEGY_CHECKS, weights_differ
from workbench.tiny import VARIANTS, tiny_backbone
from workbench.trial import Trial, Unfinished, weights

HOOKS = tuple(name for name, value in vars(ContinualStrategy).items() if callable(value) and name[0] != "_")
CLOSE = 0.7
"""How like a hook's name another has to be (difflib's ratio) to be taken for it."""


class ConformanceError(AssertionError):
    """What a strategy or a benchmark does not keep to.

    Args:
        failures: One sentence each.
    """

    def __init__(self, failures: Sequence[str]) -> None:
        self.failures = list(failures)
        super().__init__("\n".join(self.failures))


def check_strategy(
    make: Callable[[], ContinualStrategy], backbone: Callable[[], Backbone] = tiny_backbone
) -> list[str]:
    """Runs a strategy through everything that the loop relies on, on a tiny model.

    Args:
        make: Gives a fresh strategy each time, such as a class or a lambda.
        backbone: Gives the tiny model each time; `workbench.testing.VARIANTS` names further ones.

    Returns:
        What was checked, a sentence each.

    Raises:
        ConformanceError: All that failed.
    """
    passed, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(make, backbone, folder)
        for check in STRATEGY_CHECKS:
            try:
                problems = list(check(trial))
            except Unfinished:  # said once, by `runs`
                continue
            except Exception as error:  # what a stranger's class may raise, and the other checks still say something
                problems = [describe_error(error, named=True)]
            sentence = (check.__doc__ or "").strip()
            failures += [f"{sentence} {problem}" for problem in problems]
            passed += [] if problems else [sentence]
    if failures:
        raise ConformanceError(failures)
    return passed


def check_on_variants(make: Callable[[], ContinualStrategy]) -> list[str]:
    """`check_strategy` on each tiny model of `VARIANTS`, as far as the first on which anything fails.

    Args:
        make: Gives a fresh strategy each time.

    Returns:
        What was checked, a sentence each, and on which models.

    Raises:
        ConformanceError: All that failed on one model, which is named unless it is the plain one.
    """
    passed: list[str] = []
    for name, changes in VARIANTS.items():
        try:
            passed = check_strategy(make, partial(tiny_backbone, **changes))
        except ConformanceError as error:
            where = f"on the variant {name!r}: " if changes else ""
            raise ConformanceError([where + failure for failure in error.failures]) from error
    return [*passed, f"All of it on {len(VARIANTS)} tiny models: {', '.join(VARIANTS)}."]


def strategy_warnings(make: Callable[[], ContinualStrategy]) -> list[str]:
    """What is no failure, and most likely a mistake: a method that is nearly a hook, a strategy that does nothing.

    Args:
        make: Gives a fresh strategy each time.

    Returns:
        A sentence each.
    """
    made = make()
    members = [member for member in made.modules() if isinstance(member, ContinualStrategy)]
    told = [sentence for member in members for sentence in _nearly_hooks(type(member))]
    if made.bound is None and not answers_itself(made) and any(_own(type(member)) - {"setup"} for member in members):
        told += _does_nothing(make)
    return told


def _nearly_hooks(kind: type[ContinualStrategy]) -> Iterator[str]:
    own = _own(kind)
    for name in sorted(own - set(dir(ContinualStrategy))):
        close = get_close_matches(name.lower(), HOOKS, n=1, cutoff=CLOSE) if not name.startswith("_") else []
        if close and close[0] not in own:
            yield f"{kind.__name__}.{name} is no hook, so nobody calls it. Did you mean '{close[0]}'?"


def _own(kind: type[ContinualStrategy]) -> set[str]:
    """The functions that a class and its bases define, below `ContinualStrategy`."""
    classes = [one for one in kind.__mro__ if issubclass(one, ContinualStrategy) and one is not ContinualStrategy]
    return {name for one in classes if one is not Composition for name, value in vars(one).items() if callable(value)}


def _does_nothing(make: Callable[[], ContinualStrategy]) -> list[str]:
    """Compares the weights after two tiny tasks with those of plain fine-tuning, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        trial, plain = Trial(make, tiny_backbone, folder), Trial(ContinualStrategy, tiny_backbone, f"{folder}/plain")
        if trial.failure:  # which the checks tell
            return []
        if weights_differ(weights(trial.learnt), weights(plain.learnt)):
            return []
    what = "after the two tasks of the trial the weights are those of plain fine-tuning, bit for bit"
    return [f"{what}: the strategy has changed nothing. Look at the names and the conditions of its hooks."]


def check_benchmark(benchmark: Benchmark) -> list[str]:
    """Looks at a benchmark's names, orders, splits and scorers.

    Test prompts that are also in train are a failure, unless the benchmark states them: with an attribute
    `overlaps`, of entries whose `task` is the task's name.

    Returns:
        What was checked, a sentence each.

    Raises:
        ConformanceError: All that failed.
    """
    tasks = [benchmark[index] for index in range(len(benchmark))]
    failures = benchmark_problems(benchmark)
    shared = {task.name: count for task in tasks if (count := _test_prompts_in_train(task))}
    stated = {entry.task for entry in getattr(benchmark, "overlaps", ())}
    failures += [
        f"{name}: {count} test prompts are also in train." for name, count in shared.items() if name not in stated
    ]
    for task in [*tasks, *benchmark.probes]:
        failures += [f"{task.name}: {problem}" for problem in _score_problems(task)]
    if failures:
        raise ConformanceError(failures)
    return [
        "Names are unique.",
        "Every order is a permutation of the tasks.",
        "Probes are never trained.",
        f"No test prompt is trained on{_but_for(shared)}.",
        "Right answers score 1, and wrong ones less.",
    ]


def _test_prompts_in_train(task: Task) -> int:
    """Different prompts, each counted once."""
    if task.is_corpus or not len(task.train):
        return 0
    return len(set(task.test["prompt"][:]) & set(task.train["prompt"][:]))


def _but_for(shared: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count} of {name}" for name, count in shared.items())
    return f", but for overlaps that the benchmark states: {counts}" if shared else ""


def _score_problems(task: Task) -> Iterator[str]:
    if task.is_corpus:
        return
    prompts, answers = task.test["prompt"][:], task.test["answer"][:]
    right, wrong = (_primary(task, prompts, given, answers) for given in (answers, ["\x00"] * len(answers)))
    if not right > 0.99:
        yield f"the right answers score {right:.3f} under {task.primary}, not 1."
    if not wrong < right:
        yield f"nonsense scores as much as the right answers under {task.primary}."


def _primary(task: Task, prompts: list[str], predictions: list[str], answers: list[str]) -> float:
    scorer = task.scorers[task.primary].clone()
    scorer.reset()
    scorer.update(prompts, predictions, answers)
    return float(scorer.compute())
