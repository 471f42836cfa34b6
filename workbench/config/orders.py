"""Orders in which a study learns its tasks: the benchmark's own by name, written out, or drawn at random by seed."""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from workbench.config.type_check import check_type, joined
from workbench.errors import did_you_mean, name_problem

if TYPE_CHECKING:
    from workbench.benchmark import Benchmark


Entry: TypeAlias = str | dict[str, Any]
"""A name; {name: tasks}; or {"random": number of orders, "seed": seed of the draw}."""

SHAPE = "Write names, {name: [task, …]}, or {random: 5, seed: 0}."


def read_orders(value: Any, where: str, problems: list[str]) -> list[Entry] | None:
    """Read the orders of a config: a list of entries, or a mapping, which is one entry or several.

    Numbers are accepted as names: TRACE calls its orders 1 and 2.

    Args:
        value: The value in the YAML.
        where: Its key, dotted.
        problems: Receives one sentence for each problem.
    """
    if value is None:
        return None
    if not isinstance(value, list | Mapping):
        problems.append(f"{where}: expected a list or a mapping, got {value!r} ({type(value).__name__}). {SHAPE}")
        return None
    entries: list[Entry] = []
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, Mapping):
            entries += _mapping(item, joined(where, index) if isinstance(value, list) else where, problems)
        elif type(item) in (str, int):
            entries.append(str(item))
        else:
            problems.append(f"{where}: expected a name or a mapping, got {item!r} ({type(item).__name__}). {SHAPE}")
    return entries


def _mapping(item: Mapping[Any, Any], where: str, problems: list[str]) -> Iterator[Entry]:
    """Read a mapping: orders that are written out, and a number of random ones."""
    for key, tasks in item.items():
        at = joined(where, key)
        if isinstance(tasks, list):
            found = check_type(tasks, list[str], at)
            problems += found or ([] if tasks else [f"{at}: empty; name the tasks in their order."])
            yield {str(key): tasks}
        elif key not in ("random", "seed"):
            hint = did_you_mean(str(key), ("random", "seed"))
            problems.append(f"{at}: expected a list of task names, got {tasks!r} ({type(tasks).__name__}).{hint}")
    drawn = {key: item[key] for key in ("random", "seed") if key in item and not isinstance(item[key], list)}
    found = [problem for key in drawn for problem in check_type(drawn[key], int, joined(where, key))]
    if drawn and "random" not in item:
        found.append(f"{joined(where, 'random')}: missing; `seed` is the seed of so many random orders.")
    if not found and drawn and drawn["random"] < 1:
        found.append(f"{joined(where, 'random')}: {drawn['random']} is out of range; it has to be at least 1.")
    problems += found
    if drawn and not found:
        yield {"random": drawn["random"], "seed": drawn.get("seed", 0)}


def is_drawn(entry: Entry) -> bool:
    """Return True if an entry asks for random orders; one that is written out may be called "random", too.

    Args:
        entry: An entry as read.
    """
    return isinstance(entry, dict) and isinstance(entry.get("random"), int)


def names_of(entry: Entry) -> list[str]:
    """Return the names of an entry's orders, which are the names of their folders.

    Args:
        entry: An entry as read.

    >>> names_of("1"), names_of({"mine": ["b", "a"]}), names_of({"random": 2, "seed": 7})
    (['1'], ['mine'], ['random-7-1', 'random-7-2'])
    """
    if isinstance(entry, str):
        return [entry]
    if is_drawn(entry):
        return [f"random-{entry['seed']}-{index + 1}" for index in range(entry["random"])]
    return list(entry)


def chosen_orders(
    entries: Sequence[Entry] | None, own: Mapping[str, Sequence[str]], tasks: Sequence[str]
) -> dict[str, list[str]]:
    """Return the tasks of each order of a study, by the order's name.

    Args:
        entries: The config's entries; None: the benchmark's first order only.
        own: The benchmark's orders.
        tasks: Names of its tasks.
    """
    orders: dict[str, list[str]] = {}
    for entry in list(own)[:1] if entries is None else entries:
        if isinstance(entry, str):
            orders[entry] = list(own[entry])
        elif is_drawn(entry):
            orders |= dict(zip(names_of(entry), drawn_orders(tasks, entry["random"], entry["seed"]), strict=True))
        else:
            orders |= entry
    return orders


def drawn_orders(tasks: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """Draw distinct random permutations; a longer draw by the same seed begins with the shorter one.

    They depend only on the names of the tasks and on a generator whose numbers do not change between Python versions.

    Args:
        tasks: Names of the tasks, in any order.
        count: Number of permutations, at most the factorial of the number of tasks.
        seed: Seed of the draw.

    >>> drawn_orders(["a", "b", "c"], 2, 0) == drawn_orders(["c", "a", "b"], 3, 0)[:2]
    True
    """
    generator = random.Random(seed)
    orders: list[list[str]] = []
    while len(orders) < count:
        keys = {task: generator.random() for task in sorted(tasks)}
        order = sorted(keys, key=keys.__getitem__)
        if order not in orders:
            orders.append(order)
    return orders


def order_problems(
    entries: Sequence[Entry] | None, own: Mapping[str, Sequence[str]], tasks: Sequence[str], owner: str
) -> list[str]:
    """Check the entries of a config against a benchmark.

    Args:
        entries: The config's entries.
        own: The benchmark's orders.
        tasks: Names of its tasks.
        owner: The benchmark's name in messages.

    Returns:
        One sentence for each problem.
    """
    problems = []
    for entry in entries or ():
        if isinstance(entry, str):
            if entry not in own:
                hint = did_you_mean(entry, own)
                problems.append(f"orders: {owner} has no order {entry!r}.{hint} There are {', '.join(own)}.")
        elif is_drawn(entry):
            if entry["random"] > (most := math.factorial(len(tasks))):
                problems.append(f"orders.random: {entry['random']}, but {len(tasks)} tasks have only {most} orders.")
        else:
            for name, order in entry.items():
                problems += _permutation_problems(f"orders.{name}", order, tasks, owner)
                if name in own and list(own[name]) != list(order):
                    problems.append(f"orders.{name}: {owner} has an order of that name. Choose another one.")
    return problems


def _permutation_problems(where: str, order: Sequence[str], tasks: Sequence[str], owner: str) -> list[str]:
    """Check that an order contains each task exactly once."""
    problems = [
        f"{where}: {owner} has no task {task!r}.{did_you_mean(task, tasks)} There are {', '.join(tasks)}."
        for task in order
        if task not in tasks
    ]
    problems += [
        f"{where}: {task!r} is listed more than once." for task in dict.fromkeys(order) if order.count(task) > 1
    ]
    if missing := [task for task in tasks if task not in order]:
        remedy = "An order has every task; `first_tasks` and workbench.benchmark.Subset leave some out."
        problems.append(f"{where}: {', '.join(missing)} missing. {remedy}")
    return problems


def benchmark_problems(benchmark: Benchmark) -> list[str]:
    """Check the names and the orders of a benchmark, before anything is written.

    Each task, probe and corpus needs a distinct name, for its files and its column of scores; the names of orders are
    names of folders.

    Args:
        benchmark: The benchmark.

    Returns:
        One sentence for each problem.
    """
    owner = type(benchmark).__name__
    tasks = [benchmark[index].name for index in range(len(benchmark))]
    if not tasks:
        return [f"{owner} has no tasks. Give it one or more."]
    general = [("general corpus", benchmark.general.name)] if benchmark.general else []
    probes = [("probe", probe.name) for probe in benchmark.probes]
    problems = _duplicate_names([*(("task", name) for name in tasks), *probes, *general])
    orders = benchmark.orders
    if not orders:
        problems.append(f"{owner} has no orders. Give one or more, such as {{'default': {tasks[:3]!r}}}.")
    for name, order in orders.items():
        where = f"orders.{name}"
        if problem := name_problem(name):
            problems.append(f"{where}: {name!r:.60} is no name for an order: {problem}.")
        if isinstance(order, str) or not all(isinstance(task, str) for task in order):
            problems.append(f"{where}: expected a list of task names, got {order!r:.60}.")
        else:
            problems += _permutation_problems(where, list(order), list(dict.fromkeys(tasks)), owner)
    return problems + _duplicate_names([("order", name) for name in orders if isinstance(name, str)])


def _duplicate_names(names: Iterable[tuple[str, str]]) -> list[str]:
    """Report names that are equal, or that are equal on a disk that ignores case.

    Args:
        names: The kind of thing that has the name, and the name.
    """
    problems, known = dict[str, None](), dict[str, tuple[str, str]]()
    for kind, name in names:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if key not in known:
            known[key] = kind, name
            continue
        first_kind, first = known[key]
        if first != name:
            problem = f"{first_kind} {first!r} and {kind} {name!r} differ only by case: some disks take them for one."
        elif kind == first_kind:
            problem = f"{kind} {name!r} is listed more than once."
        else:
            problem = f"{kind} {name!r} is also a {first_kind}."
        problems[f"{problem} Give each a name of its own."] = None
    return list(problems)
