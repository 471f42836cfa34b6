"""Run folders with chosen numbers, written by the code that a real run uses.

`write_run` writes any matrix of two tasks and a probe; `write_example` always the same numbers, with answers and
without a journal; `write_three_tasks` a run of three tasks, to be averaged by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.report import Comparison, compare
from workbench.results import RunFolder, TaskScore

ROWS = 100
"""Test rows of each cell of `write_run`."""
COSTS = {
    "trainable_parameters": 10,
    "added_parameters": 4,
    "steps": 6,
    "tokens": 600,
    "train_seconds": 2.0,
    "eval_seconds": 1.0,
    "decoded_tokens": 50,
    "decode_seconds": 0.5,
    "rows": 8,
    "replay_rows": 2,
}
"""Costs of each item of `write_run`."""


def protocol(tasks: Sequence[str], probe: str = "probe", rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    """Return the protocol of a run, as `environment.json` has it."""
    tested = [*tasks, probe]
    return {
        "strategy": "lora",
        "order_name": "2",
        "seed": 4,
        "task_id_at_test": False,
        "strategies": [],
        "references": ["Someone, 2020"],
        "bibtex": [""],
        "backbone": "mini",
        "dtype": "float32",
        "end_token": "</s>",
        "decoding": "greedy",
        "precision": "32-true",
        "text": {"truncation": "left", "template": "none", "max_prompt_length": None},
        "scored_on": "test",
        "benchmark": "b.B",
        "order": list(tasks),
        "probes": [probe],
        "general": None,
        "primary": dict.fromkeys(tested, "accuracy"),
        "test_rows": dict.fromkeys(tested, rows),
        "training_rows": dict.fromkeys(tasks, 8),
        **changes,
    }


def record(
    run: RunFolder,
    environment: Mapping[str, Any],
    cells: Iterable[tuple[int, TaskScore]],
    costs: Iterable[Mapping[str, Any]],
    config: str,
) -> None:
    """Write all but the model of a run.

    Args:
        run: Folder of the run.
        environment: Content of `environment.json`.
        cells: Rows of the matrix, with the scores there.
        costs: Costs of each item.
        config: Content of `config.yaml`.
    """
    run.write_config(config)
    run.write_environment(environment)
    for after, score in cells:
        run.add_score(after, score)
    for item in costs:
        run.add_costs(item)


def write_model(path: Path) -> None:
    (path / "model").mkdir()
    (path / "model" / "config.json").write_text("{}", encoding="utf-8")


# -- any matrix


def write_run(
    study: Path,
    cell: tuple[str, str, int],
    matrix: Sequence[Sequence[float]],
    *,
    tasks: Sequence[str] = ("a", "b"),
    costs: Mapping[str, Any] | None = None,
    ended: bool = True,
    data: str = "data",
    answers: bool = True,
    config: str = "name: made\n",
    inputs: Mapping[str, str] | None = None,
    **changes: Any,
) -> RunFolder:
    """Write one run of two tasks and a probe where a study puts it.

    Args:
        study: Folder of the study.
        cell: Strategy, order and seed.
        matrix: Rows of scores on the tasks and the probe; fewer rows than tasks + 1 for an unfinished run.
        tasks: Names, in the run's order.
        costs: Changes to `COSTS`.
        ended: Whether the run is finished.
        data: Fingerprint of the benchmark's data.
        answers: Whether predictions are written.
        config: Content of `config.yaml`.
        inputs: Further fingerprints.
        changes: Changes to the protocol.
    """
    strategy, order, seed = cell
    stated = protocol(tasks, strategy=strategy, order_name=order, seed=seed) | changes
    rows = [{"prompt": "p", "prediction": "x", "answer": "y"}] if answers else []
    cells = [
        (after, TaskScore(name, stated["primary"][name], {stated["primary"][name]: value}, ROWS, 1.0, 7, rows))
        for after, values in enumerate(matrix)
        for name, value in zip([*tasks, "probe"], values, strict=True)
    ]
    environment = {"protocol": stated, "inputs": {"data": data, **(inputs or {})}, "peak_memory_bytes": 5_000_000}
    items = [{"item": item, **COSTS, **(costs or {})} for item in tasks[: len(matrix) - 1]]
    run = RunFolder(study / strategy / order / f"seed-{seed}")
    record(run, environment, cells, items, config)
    if ended:
        write_model(run.path)
        run.end()
    return run


def scores(op: float, zero_shot: float = 0.1) -> list[list[float]]:
    """A matrix whose OP is `op`, whose first task falls from 0.9, and whose probe falls from 0.5 to 0.4."""
    return [[zero_shot, 0.2, 0.5], [0.9, 0.3, 0.5], [op - 0.1, op + 0.1, 0.4]]


TWO_STRATEGIES = {"seqft": (0.4, 0.5, 0.6), "lora": (0.42, 0.53, 0.64)}
"""OP by strategy and seed: lora is 0.02, 0.03 and 0.04 above seqft, though each scatters by 0.1."""


def write_two_strategies(study: Path) -> Path:
    """Write three seeds of two strategies; the config names seqft first, and lora replays more in its second seed."""
    for name, values in TWO_STRATEGIES.items():
        for seed, op in enumerate(values):
            costs = {"replay_rows": 5, "tokens": 900} if (name, seed) == ("lora", 1) else {}
            write_run(study, (name, "1", seed), scores(op), costs=costs, strategies=["seqft", "lora"])
    return study


def compared(*folders: Path, baseline: str | None = None) -> Comparison:
    """Compare runs that all stand in one table."""
    (comparison,) = compare(folders, baseline)
    return comparison


# -- an example: two domains and a probe, with answers, lenient scores and likelihoods; no journal

EXAMPLE_PROBE = [0.5, 0.5, 0.4]
EXAMPLE_ANSWERS = ["what?", "yes", "</script><b>no</b>"]
EXAMPLE_COSTS = {
    "trainable_parameters": 15552,
    "added_parameters": 100,
    "steps": 3,
    "tokens": 60,
    "train_seconds": 1.5,
    "eval_seconds": 0.5,
    "decoded_tokens": 7,
    "decode_seconds": 0.25,
}


def example_scores(seed: int) -> list[list[float]]:
    """Scores on a and b after 0, 1 and 2 tasks; the last score on a grows with the seed."""
    return [[0.1, 0.2], [0.9, 0.3], [0.5 + 0.1 * seed, 0.8]]


def write_example(study: Path, strategy: str, seed: int, rows: int = 3, **changes: Any) -> Path:
    """Write a run of the domains a and b and the probe p, without a journal: as an older version, and much faster.

    Args:
        study: Folder of the study.
        strategy: Name of the strategy.
        seed: Seed; the score on a at the end is 0.5 + seed / 10.
        rows: Rows of the matrix that are there; with all three the run is finished.
        changes: Changes to the protocol.
    """
    stated = protocol("ab", "p", rows=10, strategy=strategy, order_name="default", seed=seed)
    stated |= {"strategies": ["seqft", "lora"], "benchmark": "made.Up", "majority": {"a": ["yes", 0.375]}}
    stated["text"] = {"truncation": "left", "template": "none", "max_length": 64}
    stated |= changes
    cells = [
        (after, _example_score(after, on, value))
        for after, (values, probe) in enumerate(zip(example_scores(seed), EXAMPLE_PROBE, strict=True))
        for on, value in zip("abp", [*values, probe], strict=True)
    ]
    environment = {"versions": {"torch": "2.0"}, "hardware": {"system": "Linux"}, "protocol": stated}
    items = [{"item": item, **EXAMPLE_COSTS} for item in "ab"[: rows - 1]]
    run = RunFolder(study / strategy / stated["order_name"] / f"seed-{seed}", writes=False)
    record(run, environment, cells[: 3 * rows], items, config=f"name: made  # <{strategy}>\n")
    (run.path / "predictions").mkdir(parents=True)
    for name in run.records.names:
        (run.path / name).write_text(run.records.text(name), encoding="utf-8")
    for after, scored in cells[: 3 * rows]:
        for answer in scored.predictions:
            file = run.path / "predictions" / f"{after}-{scored.task}.jsonl"
            file.write_text(json.dumps(answer) + "\n", encoding="utf-8")
    if rows == 3:
        write_model(run.path)
    return run.path


def write_examples(study: Path, strategies: Sequence[str] = ("seqft", "lora"), seeds: int = 3) -> Path:
    """Write finished examples of some strategies and seeds, all of one order."""
    for strategy in strategies:
        for seed in range(seeds):
            write_example(study, strategy, seed)
    return study


def write_many(study: Path, strategies: int, orders: int, seeds: int) -> Path:
    """Write finished examples s0, s1, … in the orders o0, o1, …."""
    for order in range(orders):
        for strategy in range(strategies):
            for seed in range(seeds):
                write_example(study, f"s{strategy}", seed, order_name=f"o{order}")
    return study


def _example_score(after: int, on: str, value: float) -> TaskScore:
    metrics = {"accuracy": value} | ({"accuracy_lenient": value + 0.05} if on == "a" else {})
    answer = {"prompt": "Is <i>it</i> so?", "prediction": EXAMPLE_ANSWERS[after], "answer": "yes"}
    return TaskScore(on, "accuracy", metrics, 10, 2 - value, 10, [answer] if on != "p" else [])


# -- three tasks

THREE_TASKS = [[0.1, 0.2, 0.1], [0.9, 0.3, 0.1], [0.6, 0.8, 0.2], [0.5, 0.6, 0.7]]
"""Rows: zero-shot, after each of three tasks; columns: the three tasks."""
THREE_TASKS_PROBE = [0.5, 0.5, 0.4, 0.3]


def score(task: str, value: float) -> TaskScore:
    """Scores of a cell with two answers."""
    answers = [{"prompt": f"é {index}", "prediction": "x\ny", "answer": "z"} for index in range(2)]
    return TaskScore(task, "accuracy", {"accuracy": value, "valid": 1.0}, 3, value * math.pi, 7, answers)


def write_three_tasks(path: Path, ended: bool = True, **changes: Any) -> RunFolder:
    """Write a run of the tasks a, b and c and a probe, or one that lacks its end; `changes` are to the protocol."""
    rows = [[*values, probe] for values, probe in zip(THREE_TASKS, THREE_TASKS_PROBE, strict=True)]
    names = ("a", "b", "c", "probe")
    cells = [(after, score(names[place], value)) for after, row in enumerate(rows) for place, value in enumerate(row)]
    same = {"steps": 3, "tokens": 60, "decode_seconds": 0.25, "rows": 8, "train_seconds": 1.5, "eval_seconds": 0.5}
    costs = [
        {"item": item, "trainable_parameters": 5 + added, "added_parameters": added, **same}
        | {"decoded_tokens": decoded, "replay_rows": replayed}
        for item, added, decoded, replayed in (("a", 0, 7, 0), ("b", 10, 8, 1), ("c", 10, 30, 2))
    ]
    environment = {"protocol": protocol("abc", **changes), "peak_memory_bytes": None}
    run = RunFolder(path)
    record(run, environment, cells, costs, config="name: small\n")
    write_model(path)
    if ended:
        run.end()
    return run
