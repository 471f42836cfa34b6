"""The program for a GPU: its counts by hand, its budget, and its parts in small on a CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from flops import B1, M135, Shape, peak_flops, training_flops
from gpu_resume import compared
from gpu_shared import Result, survived
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

HAND = Shape("hand", layers=2, width=4, heads=2, key_value_heads=1, inner=6, vocabulary=10, groups=2)
"""A block has 2 x 4x4 + 2 x 4x2 + 3 x 4x6 = 120 weights, the head 40."""


@pytest.mark.parametrize(("shape", "parameters"), [(M135, 134_515_008), (B1, 1_235_814_400)])
def test_the_shapes_have_the_parameters_of_the_published_models(shape: Shape, parameters: int) -> None:
    with torch.device("meta"):
        made = LlamaForCausalLM(shape.config())
    assert sum(parameter.numel() for parameter in made.parameters()) == parameters
    norms = (2 * shape.layers + 1) * shape.width
    assert shape.layers * shape.block + shape.head + norms == parameters


@pytest.mark.parametrize(
    ("method", "by_hand"),
    [
        # 5 tokens in rows of 2 and 3: squares 13. Weights 2 x 120 + 40 = 280.
        ("full", 6 * 280 * 5 + 12 * 2 * 4 * 13),
        # rank 1: a block's adapters have 2 x (4+4) + 2 x (4+2) + 3 x (4+6) = 58, two blocks 116.
        ("lora", 2 * 5 * (396 + 396 + 116) + 12 * 2 * 4 * 13),
        # layers old, new, old, new: forward 520, backward without the first layer 400, 240 train.
        ("blocks", 2 * 5 * (520 + 400 + 240) + 4 * 4 * 13 * (4 + 2 * 3)),
    ],
)
def test_operations_of_a_step_by_hand(method: str, by_hand: int) -> None:
    assert training_flops(HAND, method, [2, 3], rank=1) == by_hand


def test_the_peak_of_an_unknown_device_is_not_guessed() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert math.isnan(peak_flops("cpu"))
    assert math.isnan(peak_flops("NVIDIA H100 80GB HBM4"))


def test_what_a_part_leaves_over_is_divided_among_the_rest() -> None:
    parts = (gpu.Part("training", "135M", 30), gpu.Part("scoring", "135M", 10), gpu.Part("resume", "135M", 20))
    assert gpu.limit(parts, 600) == 300
    assert gpu.limit(parts[1:], 540) == 180  # the first took 60
    assert gpu.limit(parts[2:], 100) == 100


def test_a_device_is_the_first_of_those_that_are_visible() -> None:
    assert [gpu.first_gpu(given) for given in ({}, {"CUDA_VISIBLE_DEVICES": "3,1"})] == ["0", "3"]


def test_too_little_memory_is_a_result_and_another_error_is_not() -> None:
    def work(size: int) -> Iterator[Result]:
        yield {"what": "first"}
        yield {"what": "second", "value": torch.empty(size).numel()}

    first, failed = survived("many", lambda: work(2**48))
    assert first == {"what": "first"}
    assert failed["what"] == "many"
    assert failed["failed"].startswith("out of memory: ")
    with pytest.raises(RuntimeError, match="negative dimension"):
        list(survived("negative", lambda: work(-1)))


def test_how_far_apart_two_runs_end(tmp_path: Path) -> None:
    for name, last, loss in (("one", 2.0, 4.0), ("other", 2.5, 3.0)):
        (tmp_path / name / "model").mkdir(parents=True)
        save_file({"w": torch.tensor([1.0, last])}, tmp_path / name / "model" / "model.safetensors")
        (tmp_path / name / "train.csv").write_text(f"step,loss\n1,{loss}\n", encoding="utf-8")
    same = compared(tmp_path / "one", tmp_path / "one")
    assert same == {
        "bit_equal": True,
        "differing_files": [],
        "largest_weight_difference": 0.0,
        "largest_relative_loss_difference": 0.0,
    }
    assert compared(tmp_path / "one", tmp_path / "other") == {
        "bit_equal": False,
        "differing_files": ["model/model.safetensors", "train.csv"],
        "largest_weight_difference": 0.5,
        "largest_relative_loss_difference": 0.25,
    }


def results_of(part: gpu.Part, seconds: float, file: Path) -> list[dict[str, Any]]:
    """What a part of the program writes on a CPU."""
    report = gpu.Report(file, seconds, small=True)
    gpu.run_part(part, seconds, report.add)
    return json.loads(file.read_text(encoding="utf-8"))["results"]


@pytest.fixture
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("_without_a_gpu")
def test_answers_in_small_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = results_of(gpu.Part("scoring", "small", 1), 120, tmp_path / "results.json")
    assert "[scoring-small, on cpu] small, answers" in capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (written["device"], written["peak_flops_assumed"]) == ("cpu", None)  # null: not known
    texts, speeds = results[0], [result for result in results if "tokens_per_second" in result]
    assert texts["same"] == texts["rows"] == 8
    assert len(speeds) == 4
    assert all(speed["tokens_per_second"] > 0 and speed["peak_memory_GiB"] is None for speed in speeds)


@pytest.mark.usefixtures("_without_a_gpu")
def test_a_part_that_takes_too_long_is_stopped_and_reported(tmp_path: Path) -> None:
    part = gpu.Part("scoring", "small", 1)
    stopped = {"part": "scoring-small", "what": "stopped", "failed": "its time was over"}
    assert results_of(part, 0.5, tmp_path / "results.json") == [stopped]


@pytest.mark.usefixtures("_without_a_gpu")
def test_a_study_that_cannot_run_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_TRACE", raising=False)
    report = gpu.Report(tmp_path / "results.json", 10, small=False)
    gpu.run_study(59, tmp_path, report.add)
    assert report.content["results"][0]["left_out"].endswith("no WORKBENCH_TRACE and no 60 s")


@pytest.mark.slow
@pytest.mark.usefixtures("_without_a_gpu")
def test_training_and_resume_in_small_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    arguments = ("--small", "--seconds", "600", "--parts", "training-small", "resume-small")
    subprocess.run([sys.executable, gpu.__file__, str(file), *arguments], check=True)
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert not [result for result in results if "failed" in result]
    apart = [result["largest_relative_difference_to_hf"] for result in results[:2]]
    assert max(apart) < 1e-5
    resumed = [result for result in results if "resumed_bit_equal" in result]
    assert len(resumed) == 2
    assert all(result["resumed_bit_equal"] and result["saved_states"] for result in resumed)
