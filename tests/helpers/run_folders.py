"""Run folders with chosen numbers, made by the writers that a real run uses, for tests of what is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.results import RunFolder, TaskScore

ROWS = 100
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


def protocol(strategy: str, order: str, seed: int, tasks: Sequence[str]) -> dict[str, Any]:
    """What a run states beside its numbers."""
    tested = [*tasks, "probe"]
    return {
        "strategy": strategy,
        "order_name": order,
        "seed": seed,
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
        "probes": ["probe"],
        "general": None,
        "primary": dict.fromkeys(tested, "accuracy"),
        "test_rows": dict.fromkeys(tested, ROWS),
        "training_rows": dict.fromkeys(tasks, 8),
    }


def made_run(
    study: Path,
    cell: tuple[str, str, int],
    matrix: Sequence[Sequence[float]],
    *,
    tasks: Sequence[str] = ("a", "b"),
    costs: dict[str, Any] | None = None,
    ended: bool = True,
    data: str = "data",
    answers: bool = True,
    config: str = "name: made\n",
    inputs: dict[str, str] | None = None,
    **changes: Any,
) -> RunFolder:
    """One run of two tasks and a probe, laid out as a study lays it out.

    Args:
        study: The study's folder.
        cell: Strategy, order and seed.
        matrix: Rows of the scores of the tasks and of the probe; fewer rows than there are for a run on its way.
        tasks: Names, in the run's order.
        costs: Changes to what each item took.
        ended: Whether it came to its end.
        data: Fingerprint of the benchmark's data.
        answers: Whether predictions are written.
        config: The text of `config.yaml`.
        inputs: More fingerprints, beside that of the data.
        changes: To the protocol.
    """
    strategy, order, seed = cell
    run = RunFolder(study / strategy / order / f"seed-{seed}")
    run.write_config(config)
    stated = protocol(strategy, order, seed, tasks) | changes
    run.write_environment(
        {"protocol": stated, "inputs": {"data": data, **(inputs or {})}, "peak_memory_bytes": 5_000_000}
    )
    for after, values in enumerate(matrix):
        for name, value in zip([*tasks, "probe"], values, strict=True):
            metric = stated["primary"][name]
            rows = [{"prompt": "p", "prediction": "x", "answer": "y"}] if answers else []
            run.add_score(after, TaskScore(name, metric, {metric: value}, ROWS, 1.0, 7, rows))
    for item in tasks[: len(matrix) - 1]:
        run.add_costs({"item": item, **COSTS, **(costs or {})})
    if ended:
        (run.path / "model").mkdir()
        (run.path / "model" / "config.json").write_text("{}")
        run.end()
    return run


def scores(op: float, untouched: float = 0.1) -> list[list[float]]:
    """A matrix whose OP is `op`, whose first task falls from 0.9, and whose probe falls from 0.5 to 0.4."""
    return [[untouched, 0.2, 0.5], [0.9, 0.3, 0.5], [op - 0.1, op + 0.1, 0.4]]
