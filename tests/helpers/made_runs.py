"""Folders of finished runs whose numbers are known by hand, written without an engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.results.tables import COSTS, SCORES
from workbench.runtime.files import to_csv

# After 0, 1 and 2 tasks on a and b; a's last score grows with the seed.
BEFORE, AFTER_A, AFTER_B = [0.1, 0.2], [0.9, 0.3], [0.5, 0.8]
PROBE = [0.5, 0.5, 0.4]
ANSWERS = {0: "what?", 1: "yes", 2: "</script><b>no</b>"}


def scores_of(seed: int) -> list[list[float]]:
    """The score matrix of a seed: (3, 2)."""
    return [BEFORE, AFTER_A, [AFTER_B[0] + 0.1 * seed, AFTER_B[1]]]


def make_run(folder: Path, strategy: str, seed: int, rows: int = 3, **other: Any) -> Path:
    """Writes a run of two domains and a probe.

    Args:
        folder: Of the study.
        strategy: Its name.
        seed: Its score on the first domain in the end is 0.5 + seed / 10.
        rows: Of the matrix that are there; all three and the run is finished.
        other: Of the protocol.
    """
    path = folder / strategy / str(other.get("order_name", "default")) / f"seed-{seed}"
    _write_protocol(path, strategy, seed, other)
    matrix = scores_of(seed)[:rows]
    cells = [(after, on, value) for after, row in enumerate(matrix) for on, value in zip("ab", row, strict=True)]
    cells += [(after, "p", PROBE[after]) for after in range(rows)]
    scores = [_cell(after, on, "accuracy", value) for after, on, value in cells]
    scores += [_cell(after, "a", "accuracy_lenient", value + 0.05) for after, on, value in cells if on == "a"]
    (path / "scores.csv").write_text(to_csv(SCORES, scores), encoding="utf-8")
    nats = [_cell(after, on, "nats_per_token", 2 - value) for after, on, value in cells]
    (path / "nll.csv").write_text(to_csv(SCORES, nats), encoding="utf-8")
    costs = [_costs(item) for item in "ab"[: rows - 1]]
    (path / "costs.csv").write_text(to_csv([*COSTS], costs), encoding="utf-8")
    for after in range(rows):
        for on in "ab":
            row = {"prompt": "Is <i>it</i> so?", "prediction": ANSWERS[after], "answer": "yes"}
            (path / "predictions" / f"{after}-{on}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    if rows == 3:
        (path / "model").mkdir()
        (path / "model" / "config.json").write_text("{}", encoding="utf-8")
    return path


def make_study(folder: Path, strategies: Sequence[str] = ("seqft", "lora"), seeds: int = 3) -> Path:
    """Finished runs of some strategies and seeds, all of one order."""
    for strategy in strategies:
        for seed in range(seeds):
            make_run(folder, strategy, seed)
    return folder


def _write_protocol(path: Path, strategy: str, seed: int, other: dict[str, Any]) -> None:
    (path / "predictions").mkdir(parents=True)
    (path / "config.yaml").write_text(f"name: made  # <{strategy}>\n", encoding="utf-8")
    rows, text = dict.fromkeys("ab", 8), {"truncation": "left", "template": "none", "max_length": 64}
    protocol = {
        "strategy": strategy,
        "strategies": ["seqft", "lora"],
        "order_name": "default",
        "seed": seed,
        "task_id_at_test": False,
        "references": ["Someone, 2020"],
        "backbone": "mini",
        "dtype": "float32",
        "decoding": "greedy",
        "precision": "32-true",
        "text": text,
        "scored_on": "test",
        "benchmark": "made.Up",
        "order": ["a", "b"],
        "probes": ["p"],
        "general": None,
        "primary": dict.fromkeys("abp", "accuracy"),
        "test_rows": dict.fromkeys("abp", 10),
        "training_rows": rows,
        "majority": {"a": ["yes", 0.375]},
    }
    surroundings = {"versions": {"torch": "2.0"}, "hardware": {"system": "Linux"}, "protocol": protocol | other}
    (path / "environment.json").write_text(json.dumps(surroundings), encoding="utf-8")


def _cell(after: int, on: str, metric: str, value: float) -> dict[str, Any]:
    return {"after": after, "on": on, "metric": metric, "value": repr(value), "count": 10}


def _costs(item: str) -> dict[str, Any]:
    sizes = {"trainable_parameters": 15552, "added_parameters": 100, "steps": 3, "tokens": 60}
    times = {"train_seconds": 1.5, "eval_seconds": 0.5, "decoded_tokens": 7, "decode_seconds": 0.25}
    return {"item": item, **sizes, **times}
