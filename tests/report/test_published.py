"""Published tables beside one's own: the numbers as the papers print them, and what their protocols differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import scores, write_run

from workbench.report import compare
from workbench.report.published import PublishedRow, beside

TASKS = ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten")
SAME: dict[str, Any] = {
    "benchmark": "benchmarks.Trace",
    "backbone": "meta-llama/Llama-2-7b-chat-hf",
    "training_rows": dict.fromkeys(TASKS, 5000),
    "text": {"max_prompt_length": 1024, "truncation": "left", "template": "none", "tokenization": "joint"},
    "carry_optimizer": True,
}


def rows(folder: Path, **changes: Any) -> list[PublishedRow]:
    matrix = [[0.1] * 9] * 9
    write_run(folder, ("lora", "1", 0), matrix, tasks=TASKS, **SAME | changes)
    (comparison,) = compare([folder])
    return beside(comparison)


def test_the_numbers_are_in_our_scale_and_have_their_source(tmp_path: Path) -> None:
    found = {(row.source.partition(" (")[0], row.strategy): row for row in rows(tmp_path)}
    own = found["Wang et al., 2023, TRACE", "SeqFT"]
    assert own.values == pytest.approx({"OP": 0.487, "BWT": -0.083, "general_delta": -0.0258})
    grown = found["Wu et al., 2024, LLaMA Pro, version 1", "block expansion"]
    assert grown.values == pytest.approx({"OP": 0.465, "BWT": -0.143})
    assert grown.table == "Table 6"
    assert found["successors of TRACE, SEEKR among them", "SEEKR 10 %"].values == pytest.approx(
        {"OP": 0.583, "BWT": 0.001}
    )
    assert all(row.source for row in found.values())


def test_a_run_under_the_same_protocol_differs_only_in_decoding(tmp_path: Path) -> None:
    first = rows(tmp_path)[0]
    assert first.differences == ["decoding: sampled at temperature 0.1 there, greedy here"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"backbone": "mini"}, "model: LLaMA-2-7B-chat there, mini here"),
        ({"backbone": "meta-llama/Llama-2-7b-hf"}, "model: LLaMA-2-7B-chat there, meta-llama/Llama-2-7b-hf here"),
        ({"training_rows": dict.fromkeys(TASKS, 500)}, "training rows: 5000 there, 500 here"),
        ({"scored_on": "validation"}, "scored on: test rows there, validation rows here"),
        ({"text": {"max_prompt_length": 400}}, "longest prompt, in tokens: 1024 there, 400 here"),
        ({"text": {"max_prompt_length": 1024}}, "tokenization: joint there, apart here"),
        ({"carry_optimizer": False}, "optimizer: one for all tasks there, anew with each task here"),
    ],
)
def test_differences_of_protocol_are_said(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    assert why in rows(tmp_path, **changes)[0].differences


def test_what_was_not_stated_is_said_and_another_benchmark_named(tmp_path: Path) -> None:
    found = {row.strategy: row.differences for row in rows(tmp_path)}
    assert "training rows: not stated there, 5000 here" in found["block expansion"]
    assert "order: not stated there, 1 here" in found["block expansion"]
    assert found["SeqFT, re-run"][0].startswith("benchmark: text classification, O-LoRA's orders 1 to 3 (4 tasks there")


@pytest.mark.parametrize("benchmark", ["benchmarks.MiniTrace", "absent.Benchmark", "b.B"])
def test_a_benchmark_without_published_numbers_has_none(tmp_path: Path, benchmark: str) -> None:
    write_run(tmp_path, ("lora", "1", 0), scores(0.5), benchmark=benchmark)
    (comparison,) = compare([tmp_path])
    assert beside(comparison) == []
