"""A finished run of three tasks and a probe, with scores that are easy to average by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from workbench.results import RunFolder, TaskScore

# rows: untouched, after each of three tasks; columns: the three tasks
R = [[0.1, 0.2, 0.1], [0.9, 0.3, 0.1], [0.6, 0.8, 0.2], [0.5, 0.6, 0.7]]
PROBE = [0.5, 0.5, 0.4, 0.3]


def score(task: str, value: float, answers: int = 2) -> TaskScore:
    rows = [{"prompt": f"é {index}", "prediction": "x\ny", "answer": "z"} for index in range(answers)]
    return TaskScore(task, "accuracy", {"accuracy": value, "valid": 1.0}, 3, value * math.pi, 7, rows)


def protocol(names: list[str], **other: Any) -> dict[str, Any]:
    every = [*names, "probe"]
    known = {"order": names, "probes": ["probe"], "general": None, "primary": dict.fromkeys(every, "accuracy")}
    known |= {"strategy": "lora", "order_name": "2", "seed": 4, "training_rows": dict.fromkeys(names, 8)}
    known |= {"backbone": "mini", "benchmark": "b.B", "text": {"truncation": "left", "template": "none"}}
    return known | {"decoding": "greedy", "precision": "32-true", "task_id_at_test": False} | other


def fill(folder: Path, ended: bool = True, **other: Any) -> RunFolder:
    """A finished run with the scores above, or one that lacks its end."""
    run = RunFolder(folder)
    run.write_config("name: small\n")
    run.write_environment({"protocol": protocol(["a", "b", "c"], **other), "peak_memory_bytes": None})
    for after, values in enumerate(R):
        for name, value in zip("abc", values, strict=True):
            run.add_score(after, score(name, value))
        run.add_score(after, score("probe", PROBE[after]))
    for item, added, decoded in (("a", 0, 7), ("b", 10, 8), ("c", 10, 30)):
        costs = {"trainable_parameters": 5 + added, "added_parameters": added, "steps": 3, "tokens": 60}
        costs |= {
            "decoded_tokens": decoded,
            "decode_seconds": 0.25,
            "rows": 8,
            "replay_rows": added // 10 + (item == "c"),
        }
        run.add_costs({"item": item, **costs, "train_seconds": 1.5, "eval_seconds": 0.5})
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    if ended:
        run.end()
    return run
