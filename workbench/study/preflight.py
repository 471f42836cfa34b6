"""Checks of a config that need the built benchmark, strategies and executor, before a folder is created."""

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
    """Build the benchmark, the strategies and the executor, and return what is wrong with them.

    Args:
        config: Of the right shape.
        known: Problems found before; the sections that they name are not checked again.
    """
    config = for_seed(config, config.seeds[0])
    wrong = {problem.partition(":")[0].partition(".")[0] for problem in known}
    strategies, refused = _built_strategies(config)
    problems = []
    if "benchmark" not in wrong:
        problems += _benchmark_problems(config, strategies)
    if "strategies" not in wrong:
        problems += refused
    if "executor" not in wrong:
        problems += _executor_problems(config.executor)
    return problems


def benchmark_refusal(component: Component | Mapping[str, Any]) -> list[str]:
    """Return why a benchmark or one of its tasks cannot be built or used: its data, its names or its orders."""
    return _built_benchmark(component)[1]


def _built_strategies(config: StudyConfig) -> tuple[dict[str, ContinualStrategy], list[str]]:
    """Build the strategies; return those that can be built by name, and why the others cannot."""
    strategies, problems = {}, []
    for name in config.strategies:
        try:
            strategies[name] = _strategy(config, name)
        except ConfigError as error:
            problems += error.problems
    return strategies, problems


def _strategy(config: StudyConfig, name: str) -> ContinualStrategy:
    """Build a strategy of the config.

    Raises:
        ConfigError: It cannot be built, or is no strategy.
    """
    at, components = f"strategies.{name}", config.strategies[name].components
    places = [at] if len(components) == 1 else [f"{at}.{index}" for index in range(len(components))]
    members = [build(component, place) for component, place in zip(components, places, strict=True)]
    for member, place in zip(members, places, strict=True):
        kind = type(member).__name__
        if not isinstance(member, ContinualStrategy):
            raise ConfigError([f"{place}: {kind} is no ContinualStrategy. Give a class that is one."])
        if "_modules" not in vars(member):
            raise ConfigError([f"{place}: {kind}.__init__ does not call super().__init__(). Fix the class."])
    try:
        return members[0] if len(members) == 1 else Composition(members)
    except ValueError as error:
        raise ConfigError([f"{at}: {error}"]) from error


def _benchmark_problems(config: StudyConfig, strategies: Mapping[str, ContinualStrategy]) -> list[str]:
    """Return why the benchmark cannot be used, and which orders, tasks and splits of the config it does not have."""
    benchmark, refusal = _built_benchmark(config.benchmark)
    if refusal:
        return refusal
    kind, tasks = type(benchmark).__name__, [benchmark[index] for index in range(len(benchmark))]
    names = [task.name for task in tasks]
    problems = order_problems(config.orders, benchmark.orders, names, kind)
    if config.first_tasks and config.first_tasks > len(names):
        problems.append(f"first_tasks: {config.first_tasks}, but {kind} has {len(names)} tasks.")
    items = list(names)
    for name, strategy in strategies.items():
        try:
            curriculum = checked_items(strategy, strategy.curriculum(tasks, benchmark.general))
            items += [item.name for item in curriculum]
        except Exception as error:
            problems += in_words(error, f"strategies.{name}", f"{type(strategy).__name__}.curriculum")
    items = list(dict.fromkeys(items))
    problems += [
        f"per_task: {kind} has no task {task!r}.{did_you_mean(task, names)} There are {', '.join(items)}."
        for name in config.strategies
        for task in config.tasks(name)
        if task not in items
    ]
    problems += _protocol_problems(config, benchmark, items)
    return list(dict.fromkeys(problems)) + _split_problems(config, tasks)


def _built_benchmark(component: Component | Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Build a benchmark, and return it with the reasons why it cannot be used."""
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
                message = f"{name} holds an object of type {type(strange[0]).__name__}. Give tasks alone."
                return benchmark, [f"benchmark: {message}"]
        if not isinstance(benchmark, Benchmark):  # last, as to ask for a property may be to make its rows
            return benchmark, [f"benchmark: {name} is no Benchmark. Give a class that has all that one has."]
        return benchmark, [f"benchmark: {line}" for line in benchmark_problems(benchmark)]
    except Exception as error:
        return benchmark, in_words(error, "benchmark", name)


def _protocol_problems(config: StudyConfig, benchmark: Benchmark, items: Sequence[str]) -> Iterator[str]:
    """Yield what does not go with joint tokenization, or with one optimizer for all tasks."""
    published = published_protocol(benchmark)
    try:
        tokenization = config.data.tokenization or published.tokenization
        TextPolicy(truncation=config.data.truncation, tokenization=tokenization)
    except ValueError as error:
        yield str(error)
    if not (published.carry_optimizer if config.carry_optimizer is None else config.carry_optimizer):
        return
    for strategy in config.strategies:
        classes = {config.settings(strategy, item).optimizer.class_path for item in items}
        if len(classes) > 1:
            message = f"carry_optimizer: {strategy} trains with {' and '.join(sorted(classes))}, whose states differ"
            yield f"{message}. Give all its tasks one class, or carry_optimizer=false."


def _split_problems(config: StudyConfig, tasks: Sequence[Task]) -> list[str]:
    """Return the tasks without the rows that the study scores; probes and the general corpus need none."""
    empty = [task.name for task in tasks if len(task.validation) == 0]
    if config.data.score_on == "test" or not empty:
        return []
    has = "has" if len(empty) == 1 else "have"
    remedy = "Give the benchmark some, or leave data.score_on at test."
    return [f"data.score_on: validation, but {', '.join(empty)} {has} no validation rows. {remedy}"]


def _executor_problems(component: Component) -> list[str]:
    """Return why the executor cannot be built, or that the object is none."""
    try:
        executor = build(component, "executor")
    except ConfigError as error:
        return error.problems
    known = hasattr(executor, "make") and hasattr(executor, "several_devices")
    remedy = "Give one such as workbench.executors.Workers."
    return [] if known else [f"executor: {component.class_path} makes no runs. {remedy}"]
