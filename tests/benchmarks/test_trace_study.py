"""A study on real input: a real pretrained LLaMA learns real TRACE domains."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import pytest

from workbench.study import Study

TASKS = {
    "C-STANCE": 8,
    "FOMC": 8,
    "ScienceQA": 96,
    "NumGLUE-cm": 16,
    "NumGLUE-ds": 16,
}
needs_real_input = pytest.mark.skipif(
    not (os.environ.get("WORKBENCH_MODEL") and os.environ.get("WORKBENCH_TRACE")),
    reason="set WORKBENCH_MODEL to a model folder and WORKBENCH_TRACE to a folder of TRACE's tasks",
)


def cells(file: Path) -> dict[tuple[int, str, str], float]:
    """(after, on, metric) to value."""
    with file.open(encoding="utf-8", newline="") as lines:
        return {(int(row["after"]), row["on"], row["metric"]): float(row["value"]) for row in csv.DictReader(lines)}


def check_run(run: Path, tasks: list[str]) -> None:
    """Every cell is measured, every answer is on disk, and each domain's likelihood rises when it is learnt."""
    scores, nll = cells(run / "scores.csv"), cells(run / "nll.csv")
    for after in range(len(tasks) + 1):
        for task in tasks:
            assert 0 <= scores[after, task, "accuracy"] <= 1
            assert math.isfinite(nll[after, task, "nats_per_token"])
            assert (run / "predictions" / f"{after}-{task}.jsonl").is_file()
    for place, task in enumerate(tasks, start=1):
        assert nll[place, task, "nats_per_token"] < nll[place - 1, task, "nats_per_token"]
        if (place, task, "valid") in scores:
            assert scores[place, task, "valid"] >= 0.9


@needs_real_input
def test_two_real_domains(tmp_path: Path) -> None:
    """Two domains, two epochs each: format and likelihood are learnt in under a minute."""
    only = "strategies={seqft: {class_path: strategies.SeqFT}}"
    tasks = ["FOMC", "NumGLUE-ds"]
    overrides = [only, f"benchmark.init_args.tasks=[{','.join(tasks)}]", "trainer.max_epochs=2", f"output={tmp_path}"]
    overrides += [
        "benchmark.init_args.train_rows=250",
        "benchmark.init_args.test_rows=30",
        "data.max_prompt_length=128",
    ]
    Study("trace_small", overrides).run()
    check_run(tmp_path / "trace_small" / "seqft" / "1" / "seed-0", tasks)


@pytest.mark.slow
@needs_real_input
@pytest.mark.parametrize("strategy", ["seqft", "lora", "block_expansion"])
def test_five_real_domains(tmp_path: Path, strategy: str) -> None:
    """The shipped study, one strategy at a time (minutes)."""
    others = [f"strategies.{name}=null" for name in ("seqft", "lora", "block_expansion") if name != strategy]
    Study("trace_small", [*others, f"output={tmp_path}"]).run()
    check_run(tmp_path / "trace_small" / strategy / "1" / "seed-0", list(TASKS))
