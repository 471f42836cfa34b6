"""What only the built benchmark and strategies refuse, told before a folder is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

from workbench.backbone.encoding import TextPolicy
from workbench.benchmark import Benchmark, Task, published_protocol
from workbench.config import Component, StudyConfig
from workbench.config.components import build
from workbench.config.orders import benchmark_problems, order_problems
from workbench.config.schema import for_seed
from workbench.errors import ConfigError, did_you_mean, in_words
from workbench.strategy import Composition, ContinualStrategy, checked_items


def built_problems(config: StudyConfig, known: Sequence[str]) -> list[str]:
    """What only the built benchmark and strategies can tell, left out where their classes are wrong already.

    Args:
        config: Of the right shape.
        known: Problems that were found before.
    """
    config = for_seed(config, config.seeds[0])
    sections = {problem.partition(":")[0] for problem in known}
    problems = []
    if not any(section.startswith("benchmark") for section in sections):
        problems += _benchmark_problems(config)
    if not any(section.startswith("strategies") for section in sections):
        problems += _strategy_problems(config)
    if "executor" not in {section.partition(".")[0] for section in sections}:
        problems += _executor_problems(config.executor)
    return problems


def benchmark_refusal(component: Component | Mapping[str, Any]) -> list[str]:
    """Why a benchmark or one of its tasks cannot be built or run: its data, its names or its orders are wrong."""
    return _built(component)[1]


def _built(component: Component | Mapping[str, Any]) -> tuple[Any, list[str]]:
    """A benchmark, and why it cannot be used."""
    try:
        benchmark: Any = build(component, "benchmark")
    except ConfigError as error:
        return None, error.problems
    name = type(benchmark).__name__
    try:
        if isinstance(benchmark, Sized):
            held: Any = benchmark
            items = [held[index] for index in range(len(held))]
            if strange := [item for item in items if not isinstance(item, Task)]:
                told = f"{name} holds an object of type {type(strange[0]).__name__}. Give tasks alone."
                return benchmark, [f"benchmark: {told}"]
        if not isinstance(benchmark, Benchmark):  # last, as to ask for a property may be to make its rows
            return benchmark, [f"benchmark: {name} is no Benchmark. Give a class that has all that one has."]
        return benchmark, [f"benchmark: {line}" for line in benchmark_problems(benchmark)]
    except Exception as error:
        return benchmark, in_words(error, "benchmark", name)


def _benchmark_problems(config: StudyConfig) -> list[str]:
    """Its own refusal; orders and tasks that it does not have."""
    benchmark, refusal = _built(config.benchmark)
    if refusal:
        return refusal
    names = [benchmark[index].name for index in range(len(benchmark))]
    problems = order_problems(config.orders, benchmark.orders, names, type(benchmark).__name__)
    if config.first_tasks and config.first_tasks > len(names):
        problems.append(f"first_tasks: {config.first_tasks}, but {type(benchmark).__name__} has {len(names)} tasks.")
    inserted = [name for strategy in config.strategies for name in _inserted(config, strategy, benchmark, problems)]
    for strategy in config.strategies:
        problems += [
            f"per_task: {type(benchmark).__name__} has no task {task!r}.{did_you_mean(task, names)} "
            f"There are {', '.join(dict.fromkeys([*names, *inserted]))}."
            for task in config.tasks(strategy)
            if task not in (*names, *inserted)
        ]
    problems += _protocol_problems(config, benchmark, [*names, *inserted])
    return list(dict.fromkeys(problems)) + _split_problems(config, benchmark)


def _inserted(config: StudyConfig, strategy: str, benchmark: Benchmark, problems: list[str]) -> list[str]:
    """The items that a strategy puts among the tasks; what it refuses of them goes to the problems."""
    tasks = [benchmark[index] for index in range(len(benchmark))]
    try:
        made = _strategy(config, strategy)
        items = checked_items(made, made.curriculum(tasks, benchmark.general))
    except ConfigError:  # told by `_strategy_problems`
        return []
    except Exception as error:
        problems += in_words(error, f"strategies.{strategy}", f"{type(made).__name__}.curriculum")
        return []
    names = {task.name for task in tasks}
    return [item.name for item in items if item.name not in names]


def _protocol_problems(config: StudyConfig, benchmark: Benchmark, names: Sequence[str]) -> Iterator[str]:
    """What does not go with joint tokenization, or with one optimizer for all tasks."""
    published = published_protocol(benchmark)
    try:
        tokenization = config.data.tokenization or published.tokenization
        TextPolicy(truncation=config.data.truncation, tokenization=tokenization)
    except ValueError as error:
        yield str(error)
    if not (published.carry_optimizer if config.carry_optimizer is None else config.carry_optimizer):
        return
    for strategy in config.strategies:
        classes = {config.settings(strategy, task).optimizer.class_path for task in names}
        if len(classes) > 1:
            told = f"carry_optimizer: {strategy} trains with {' and '.join(sorted(classes))}, whose states differ"
            yield f"{told}. Give all its tasks one class, or carry_optimizer=false."


def _split_problems(config: StudyConfig, benchmark: Benchmark) -> list[str]:
    """Tasks without the rows that the study is to score; probes and the general corpus need none."""
    if config.data.score_on == "test":
        return []
    tasks = [benchmark[index] for index in range(len(benchmark))]
    empty = [task.name for task in tasks if len(task.validation) == 0]
    if not empty:
        return []
    has = "has" if len(empty) == 1 else "have"
    remedy = "Give the benchmark some, or leave data.score_on at test."
    return [f"data.score_on: validation, but {', '.join(empty)} {has} no validation rows. {remedy}"]


def _executor_problems(component: Component) -> list[str]:
    """What the executor refuses as it is built, or that it is none."""
    try:
        executor = build(component, "executor")
    except ConfigError as error:
        return error.problems
    known = hasattr(executor, "make") and hasattr(executor, "several_devices")
    remedy = "Give one such as workbench.executors.Workers."
    return [] if known else [f"executor: {component.class_path} makes no runs. {remedy}"]


def _strategy_problems(config: StudyConfig) -> list[str]:
    """What the strategies refuse as they are built."""
    problems = []
    for name in config.strategies:
        try:
            _strategy(config, name)
        except ConfigError as error:
            problems += error.problems
    return problems


def _strategy(config: StudyConfig, name: str) -> ContinualStrategy:
    """A strategy of the config, built.

    Raises:
        ConfigError: It cannot be built, or is none.
    """
    at, components = f"strategies.{name}", config.strategies[name].components
    places = [at] if len(components) == 1 else [f"{at}.{index}" for index in range(len(components))]
    members = [build(component, place) for component, place in zip(components, places, strict=True)]
    for member, place in zip(members, places, strict=True):
        kind = type(member).__name__
        if not isinstance(member, ContinualStrategy):
            raise ConfigError([f"{place}: {kind} is no ContinualStrategy. Give a class that is one."])
        if "_modules" not in vars(member):
            raise ConfigError([f"{place}: {kind}.__init__ does not call super().__init__(). Mend the class."])
    try:
        return members[0] if len(members) == 1 else Composition(members)
    except ValueError as error:
        raise ConfigError([f"{at}: {error}"]) from error
