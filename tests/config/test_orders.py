"""Orders: reading them, drawing them at random, checking them against a benchmark, and runs in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers.studies import column, study, write_tasks

from workbench.benchmark import Benchmark
from workbench.config import load, parse
from workbench.config.orders import (
    benchmark_problems,
    chosen_orders,
    drawn_orders,
    names_of,
    order_problems,
    read_orders,
)
from workbench.errors import ConfigError
from workbench.study import Study

OWN = {"1": ("a", "b", "c"), "2": ("c", "b", "a")}
TASKS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("given", "entries"),
    [
        (None, None),
        ([1, "2"], ["1", "2"]),
        ({"mine": ["b", "a", "c"]}, [{"mine": ["b", "a", "c"]}]),
        ({"mine": ["b"], "other": ["a"]}, [{"mine": ["b"]}, {"other": ["a"]}]),
        ({"random": 5}, [{"random": 5, "seed": 0}]),
        (["1", {"random": 2, "seed": 7}, {7: ["a"]}], ["1", {"7": ["a"]}, {"random": 2, "seed": 7}]),
        ({"random": ["b", "a"]}, [{"random": ["b", "a"]}]),
    ],
)  # fmt: skip
def test_orders_are_read(given: Any, entries: Any) -> None:
    problems: list[str] = []
    read = read_orders(given, "orders", problems)
    assert problems == []
    assert sorted(map(repr, read or [])) == sorted(map(repr, entries or []))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("1", "orders: expected a list or a mapping, got '1' (str). "
              "Write names, {name: [task, …]}, or {random: 5, seed: 0}."),
        ([1.5], "orders: expected a name or a mapping, got 1.5 (float). "
                "Write names, {name: [task, …]}, or {random: 5, seed: 0}."),
        ({"randm": 5}, "orders.randm: expected a list of task names, got 5 (int). Did you mean 'random'?"),
        ({"mine": []}, "orders.mine: empty; name the tasks in their order."),
        ([{"mine": ["a", 2]}], "orders.0.mine: expected list[str], got ['a', 2] (list)."),
        ({"random": 0}, "orders.random: 0 is out of range; it has to be at least 1."),
        ({"random": "many"}, "orders.random: expected int, got 'many' (str)."),
        ({"seed": 3}, "orders.random: missing; `seed` is the seed of so many random orders."),
    ],
)  # fmt: skip
def test_orders_of_a_wrong_shape(given: Any, problem: str) -> None:
    problems: list[str] = []
    read_orders(given, "orders", problems)
    assert problems == [problem]


def test_names_are_folder_names_and_unique(tmp_path: Path) -> None:
    raw = study(tmp_path, tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"^orders: 'random-0-2' is listed more than once\.$"):
        parse({**raw, "orders": ["random-0-2", {"random": 3}]})
    with pytest.raises(ConfigError, match=r"^orders: 'a/b' is not a plain folder name"):
        parse({**raw, "orders": {"a/b": ["x"]}})


def test_random_orders_depend_on_their_seed_only() -> None:
    six = [f"task {index}" for index in range(6)]
    ten = drawn_orders(six, 10, seed=3)
    assert all(sorted(order) == six for order in ten)
    assert len(set(map(tuple, ten))) == 10
    assert drawn_orders(six[::-1], 4, seed=3) == ten[:4]
    assert drawn_orders(six, 10, seed=4) != ten
    assert ten[0] == ["task 5", "task 0", "task 2", "task 1", "task 3", "task 4"]  # in every version of Python
    assert sorted(map(tuple, drawn_orders(TASKS, 6, 0))) == [
        ("a", "b", "c"), ("a", "c", "b"), ("b", "a", "c"), ("b", "c", "a"), ("c", "a", "b"), ("c", "b", "a"),
    ]  # fmt: skip


def test_chosen_orders_by_name() -> None:
    assert chosen_orders(None, OWN, TASKS) == {"1": TASKS}
    entries = ["2", {"mine": ["b", "a", "c"]}, {"random": 2, "seed": 5}]
    found = chosen_orders(entries, OWN, TASKS)
    assert list(found) == ["2", "mine", "random-5-1", "random-5-2"]
    assert list(found) == [name for entry in entries for name in names_of(entry)]
    assert (found["2"], found["mine"]) == (["c", "b", "a"], ["b", "a", "c"])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("3", "orders: Trace has no order '3'. There are 1, 2."),
        ({"x": ["a", "b", "cc"]}, "orders.x: Trace has no task 'cc'. Did you mean 'c'? There are a, b, c."),
        ({"x": ["a", "b", "c", "b"]}, "orders.x: 'b' is listed more than once."),
        ({"x": ["a", "c"]}, "orders.x: b missing. An order has every task; "
                            "`first_tasks` and workbench.benchmark.Subset leave some out."),
        ({"1": ["a", "c", "b"]}, "orders.1: Trace has an order of that name. Choose another one."),
        ({"random": 7, "seed": 0}, "orders.random: 7, but 3 tasks have only 6 orders."),
    ],
)  # fmt: skip
def test_orders_that_do_not_fit_the_benchmark(entry: Any, problem: str) -> None:
    found = order_problems([entry], OWN, TASKS, "Trace")
    assert found[0] == problem


@dataclass
class Given:
    """A benchmark whose tasks, probe and corpus have nothing but a name."""

    tasks: Sequence[str] = ("a", "b")
    orders: Any = field(default_factory=lambda: {"default": ["a", "b"]})
    probe: str = "p"
    corpus: str = "prose"

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Any:
        return SimpleNamespace(name=self.tasks[index])

    @property
    def probes(self) -> list[Any]:
        return [SimpleNamespace(name=self.probe)]

    @property
    def general(self) -> Any:
        return SimpleNamespace(name=self.corpus)


OWN_NAME = "Give each a name of its own."
EVERY = "An order has every task; `first_tasks` and workbench.benchmark.Subset leave some out."


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        (Given(), []),
        (Given(tasks=[], orders={}), ["Given has no tasks. Give it one or more."]),
        (Given(tasks=["a", "b", "a"]), [f"task 'a' is listed more than once. {OWN_NAME}"]),
        (Given(probe="b"), [f"probe 'b' is also a task. {OWN_NAME}"]),
        (Given(corpus="a"), [f"general corpus 'a' is also a task. {OWN_NAME}"]),
        (Given(corpus="p"), [f"general corpus 'p' is also a probe. {OWN_NAME}"]),
        (
            Given(tasks=["a", "É"], orders={"x": ["a", "É"]}, probe="e\u0301"),  # composed or not, upper case or lower
            [f"task 'É' and probe 'e\u0301' differ only by case: some disks take them for one. {OWN_NAME}"],
        ),
        (Given(orders={}), ["Given has no orders. Give one or more, such as {'default': ['a', 'b']}."]),
        (Given(orders={"x": ["a", "b", "a"]}), ["orders.x: 'a' is listed more than once."]),
        (Given(orders={"x": ["b"]}), [f"orders.x: a missing. {EVERY}"]),
        (
            Given(orders={"x": ["a", "b", "bb"]}),
            ["orders.x: Given has no task 'bb'. Did you mean 'b'? There are a, b."],
        ),
        (Given(orders={"x": "ab"}), ["orders.x: expected a list of task names, got 'ab'."]),
        (
            Given(orders={1: ["a", "b"]}),
            ["orders.1: 1 is no name for an order: expected a text, got a value of type int."],
        ),
        (
            Given(orders={"a/b": ["a", "b"]}),
            ["orders.a/b: 'a/b' is no name for an order: it has to be usable as a file's name."],
        ),
        (
            Given(orders={"One": ["a", "b"], "one": ["b", "a"]}),
            [f"order 'One' and order 'one' differ only by case: some disks take them for one. {OWN_NAME}"],
        ),
    ],
)
def test_benchmarks_with_wrong_names_or_orders(given: Given, problems: list[str]) -> None:
    assert benchmark_problems(cast(Benchmark, given)) == problems


@pytest.fixture
def make(model_folder: Path, tmp_path: Path) -> Callable[..., Study]:
    """Return a function that builds a study of three tasks, with some keys changed."""
    tasks = write_tasks(tmp_path / "tasks", ("alpha", "beta", "gamma"))

    def build(**changes: Any) -> Study:
        return Study(parse(study(model_folder, tasks, tmp_path / "runs", **changes)))

    return build


def test_a_run_in_a_drawn_order_runs_again_by_itself(make: Callable[..., Study]) -> None:
    first = make(orders={"random": 1, "seed": 2})
    first.run()
    (run,) = first.runs
    path = run.folder
    order = drawn_orders(["alpha", "beta", "gamma"], 1, 2)[0]
    assert first.results(run).environment()["protocol"]["order"] == order
    assert load(path / "config.yaml").orders == [{"random-2-1": order}]
    again = Study(path / "config.yaml", ["name=again"])
    again.run()
    other = again.runs[0].folder
    for name in ("scores.csv", "model/model.safetensors"):
        assert (other / name).read_bytes() == (path / name).read_bytes()
    more = make(orders={"random": 2, "seed": 2})
    more.run()
    assert [run.order for run in more.runs] == ["random-2-1", "random-2-2"]
    with pytest.raises(ConfigError, match=r"made with another config \(orders\.0\.random-2-1"):
        make(orders={"random-2-1": order[::-1]}).run()


def test_first_tasks_shortens_each_order(make: Callable[..., Study]) -> None:
    small = make(orders={"up": ["alpha", "beta", "gamma"], "down": ["gamma", "beta", "alpha"]}, first_tasks=2)
    small.run()
    for run, order in zip(small.runs, (["alpha", "beta"], ["gamma", "beta"]), strict=True):
        results = small.results(run)
        assert results.environment()["protocol"]["order"] == order
        assert results.matrix().shape == (3, 2)
        assert not results.matrix().isnan().any()
        tested = list(
            dict.fromkeys(zip(*(column(run.folder / "nll.csv", key) for key in ("after", "on")), strict=True))
        )
        assert tested == [(str(after), name) for after in range(3) for name in order]
    with pytest.raises(ConfigError, match=r"^first_tasks: 4, but Trace has 3 tasks\.$"):
        make(first_tasks=4)
