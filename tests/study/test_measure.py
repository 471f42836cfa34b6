"""What training costs: bytes that are counted, a peak that is measured, and what a process then really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.studies import ROOT, study

from strategies import BlockExpansion, LoRA, SeqFT
from workbench.backbone import Backbone
from workbench.runtime.environment import PeakMemory
from workbench.strategy import ContinualStrategy
from workbench.study import Study, measure
from workbench.study.measure import Memory, counted_memory, free_memory
from workbench.testing import tiny_backbone

Make = Callable[..., Study]
TOLERANCE = 0.25
STEP = 4  # bytes of the count of steps that Adam keeps for each tensor


def stepped(strategy: ContinualStrategy, name: str = "AdamW", **changes: Any) -> tuple[Backbone, torch.optim.Optimizer]:
    """A tiny model and its optimizer after a step; `changes` of the model, and momentum for SGD."""
    momentum = {"momentum": changes.pop("momentum")} if "momentum" in changes else {}
    backbone = tiny_backbone(**changes)
    strategy.setup(backbone)
    optimizer = getattr(torch.optim, name)(backbone.trainable().values(), lr=0.01, **momentum)
    row = {"input_ids": list(range(3, 11)), "prompt_length": 4, "row": 0}
    backbone(backbone.collate([row] * 2)).loss.backward()
    optimizer.step()
    return backbone, optimizer


@pytest.mark.parametrize("strategy", [SeqFT(), LoRA(rank=2), BlockExpansion(groups=2)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("variant", [{}, {"tie_word_embeddings": True}, {"dtype": torch.bfloat16}])
def test_weights_gradients_and_moments_to_the_byte(strategy: ContinualStrategy, variant: dict[str, Any]) -> None:
    backbone, optimizer = stepped(strategy, **variant)
    memory = counted_memory(backbone, optimizer)
    weights = {value.data_ptr(): value.numel() * value.element_size() for value in backbone.parameters()}
    trains = [value for value in backbone.parameters() if value.requires_grad]
    values = sum(value.numel() * value.element_size() for value in trains)
    assert memory.weights == sum(weights.values()) + sum(buffer.nbytes for buffer in backbone.buffers())
    assert memory.gradients == values
    assert memory.optimizer == 2 * values + STEP * len(trains)
    assert memory.total == memory.weights + memory.gradients + memory.optimizer


@pytest.mark.parametrize(("name", "settings", "moments"), [("SGD", {}, 0), ("SGD", {"momentum": 0.9}, 1)])
def test_the_state_is_that_of_the_real_optimizer(name: str, settings: dict[str, Any], moments: int) -> None:
    memory = counted_memory(*stepped(SeqFT(), name, **settings))
    assert memory.optimizer == moments * memory.gradients


def test_where_nothing_measures_the_rest_is_not_made_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeakMemory, "bytes", lambda self: None)
    text = str(make().plan())
    assert "; memory at least " in text
    assert ", and the activations" in text


def test_memory_in_words() -> None:
    assert str(Memory(2 * 10**9, 10**9, 0, 5 * 10**8)) == (
        "about 3.5 GB: weights 2.0, gradients 1.0, optimizer 0.0, activations 0.5"
    )
    assert str(Memory(3 * 10**6, 10**6, 2 * 10**6, 10**7, 4 * 10**6)) == (
        "about 20 MB: weights 3, gradients 1, optimizer 2, activations 10, frozen states 4"
    )
    assert str(Memory(3 * 10**6, 10**6, 0, None)) == (
        "at least 4 MB: weights 3, gradients 1, optimizer 0, and the activations"
    )


def test_a_devices_share() -> None:
    whole = Memory(800, 400, 801, 50)
    assert whole.on_one_of(1, sharded=True) == whole
    assert whole.on_one_of(2, sharded=True) == Memory(800, 200, 401, 50)
    assert whole.on_one_of(2, sharded=False) == Memory(800, 800, 801, 50)


def test_free_memory_is_what_linux_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    model = sum(value.nbytes for value in (*backbone.parameters(), *backbone.buffers()))
    monkeypatch.setattr(measure, "MEMORY", tmp_path / "meminfo")
    assert free_memory(backbone) is None
    measure.MEMORY.write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n", encoding="ascii")
    assert free_memory(backbone) == 1_024_000 + model


def test_free_memory_of_a_gpu_counts_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 bytes torch has reserved 40, of which the model takes 24 and 16 are unused."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 24)
    model = SimpleNamespace(device=torch.device("cuda"), parameters=lambda: [torch.zeros(6)], buffers=list)
    assert free_memory(model) == 100  # type: ignore[arg-type]


PLAN_OR_RUN = """
import json, sys
from workbench.config import parse
from workbench.study import Study

study = Study(parse(json.loads(sys.argv[1])))
if sys.argv[2] == "plan":
    for name, estimate in study.plan().estimates.items():
        print("bytes", name, estimate.memory.total)
else:
    study.run()
    for run in study.runs:
        print("bytes", run.strategy, study.results(run).environment()["peak_memory_bytes"])
"""


def in_a_process(config: dict[str, Any], what: str) -> dict[str, int]:
    """The bytes of each strategy in a plan or a run that has a process to itself."""
    command = [sys.executable, "-c", PLAN_OR_RUN, json.dumps(config), what]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=300)
    return {line.split()[1]: int(line.split()[2]) for line in ran.stdout.splitlines() if line.startswith("bytes")}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts")
@pytest.mark.slow
def test_a_run_takes_what_the_plan_says(tmp_path: Path) -> None:
    """A model of 15 million parameters, twelve steps on rows of 256 tokens."""
    shape = {"hidden_size": 256, "intermediate_size": 688, "head_dim": 32, "vocab_size": 16000}
    tiny_backbone(**shape, num_attention_heads=8, num_key_value_heads=8).save(tmp_path / "model")
    for split, rows in (("train", 96), ("eval", 1), ("test", 2)):
        content = [{"prompt": "b c d e f " * 60 * (split == "train"), "answer": "a b c d " * 8}] * rows
        file = tmp_path / "tasks" / "long" / f"{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    config = study(
        tmp_path / "model",
        tmp_path / "tasks",
        tmp_path / "runs",
        strategies={
            "seqft": {"class_path": "strategies.SeqFT"},
            "lora": {"class_path": "strategies.LoRA"},
            "block_expansion": {"class_path": "strategies.BlockExpansion", "init_args": {"groups": 4}},
        },
        data={"batch_size": 8, "max_prompt_length": 224, "max_answer_length": 32},
    )
    planned, taken = in_a_process(config, "plan"), {}
    for name in planned:
        alone = {**config, "name": name, "strategies": {name: config["strategies"][name]}}
        taken |= in_a_process(alone, "run")
    print({name: f"{planned[name] / 1e6:.0f} MB planned, {taken[name] / 1e6:.0f} MB taken" for name in planned})
    assert planned.keys() == taken.keys() == config["strategies"].keys()
    assert all(abs(planned[name] / taken[name] - 1) < TOLERANCE for name in planned)
