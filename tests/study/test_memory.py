"""What a training step will take of the memory: closed forms, and what a process then really takes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import ROOT, study

from strategies import BlockExpansion, LoRA, SeqFT
from workbench.backbone import Backbone, Batch
from workbench.backbone.loading import checkpoint_blocks, is_checkpointed
from workbench.config import parse
from workbench.strategy import ContinualStrategy
from workbench.study import Study, memory
from workbench.study.memory import Memory, free_memory, kept_activations, step_memory
from workbench.study.plan import StrategyEstimate
from workbench.testing import tiny_backbone

TOLERANCE = 0.25
STEP = 4  # bytes of the count of steps that Adam keeps for each tensor
MEASURE = """
import gc, sys, torch
from strategies import BlockExpansion, LoRA, SeqFT
from workbench.runtime.environment import PeakMemory
from workbench.study.memory import step_memory
from workbench.testing import tiny_backbone

SHAPE = dict(hidden_size=256, intermediate_size=688, head_dim=32, num_attention_heads=8, num_key_value_heads=8)
ROW = {"input_ids": list(range(3, 259)), "prompt_length": 224, "row": 0}

def steps(strategy, rows, **shape):
    backbone = tiny_backbone(**shape)
    strategy.setup(backbone)
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-4)
    for _ in range(2):
        loss = backbone(backbone.collate([ROW] * rows)).loss
        optimizer.zero_grad()  # in Lightning's order
        loss.backward()
        optimizer.step()
    return backbone, optimizer

steps(SeqFT(), 1)
for strategy in SeqFT(), LoRA(), BlockExpansion(groups=4):
    gc.collect()
    mark = PeakMemory(torch.device("cpu"))
    before = mark.bytes()
    made = steps(strategy, 8, **SHAPE, vocab_size=16000)
    measured = mark.bytes() - before
    print("found", type(strategy).__name__, measured, step_memory(*made, ROW, 8).total)
    del made
"""


def row(length: int, labelled: int = 4) -> dict[str, Any]:
    """An encoded row of so many tokens, the last of which are labelled."""
    return {"input_ids": list(range(3, 3 + length)), "prompt_length": length - labelled, "row": 0}


def batch(backbone: Backbone, rows: int, length: int, labelled: int = 4) -> Batch:
    return backbone.collate([row(length, labelled)] * rows)


def stepped(strategy: ContinualStrategy, name: str = "AdamW", **changes: Any) -> tuple[Backbone, torch.optim.Optimizer]:
    """A tiny model and its optimizer after a step; `changes` of the model, and momentum for SGD."""
    momentum = {"momentum": changes.pop("momentum")} if "momentum" in changes else {}
    backbone = tiny_backbone(**changes)
    strategy.setup(backbone)
    optimizer = getattr(torch.optim, name)(backbone.trainable().values(), lr=0.01, **momentum)
    backbone(batch(backbone, 2, 8)).loss.backward()
    optimizer.step()
    return backbone, optimizer


@pytest.mark.parametrize("strategy", [SeqFT(), LoRA(rank=2), BlockExpansion(groups=2)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("variant", [{}, {"tie_word_embeddings": True}, {"dtype": torch.bfloat16}])
def test_weights_gradients_and_moments_to_the_byte(strategy: ContinualStrategy, variant: dict[str, Any]) -> None:
    backbone, optimizer = stepped(strategy, **variant)
    found = step_memory(backbone, optimizer, row(8), 2)
    weights = {value.data_ptr(): value.numel() * value.element_size() for value in backbone.parameters()}
    trains = [value for value in backbone.parameters() if value.requires_grad]
    values = sum(value.numel() * value.element_size() for value in trains)
    assert found.weights == sum(weights.values()) + sum(buffer.nbytes for buffer in backbone.buffers())
    assert found.gradients == values
    assert found.optimizer == 2 * values + STEP * len(trains)


@pytest.mark.parametrize(("name", "settings", "moments"), [("SGD", {}, 0), ("SGD", {"momentum": 0.9}, 1)])
def test_the_real_optimizer_says_what_it_keeps(name: str, settings: dict[str, Any], moments: int) -> None:
    backbone, optimizer = stepped(SeqFT(), name, **settings)
    found = step_memory(backbone, optimizer, row(8), 2)
    assert found.optimizer == moments * found.gradients


def test_activations_of_a_large_batch_follow_from_one_row_and_two() -> None:
    backbone, optimizer = stepped(SeqFT())
    assert step_memory(backbone, optimizer, row(40), 7).activations == kept_activations(
        backbone, batch(backbone, 7, 40)
    )


def layer(length: int, checkpointed: bool = False) -> int:
    """Bytes that one more layer of the model adds."""
    sizes = []
    for depth in (2, 3):
        backbone = tiny_backbone(num_hidden_layers=depth)
        if checkpointed:
            checkpoint_blocks(backbone.model)
        sizes.append(kept_activations(backbone, batch(backbone, 2, length)))
        assert is_checkpointed(backbone) is checkpointed
    return sizes[1] - sizes[0]


def test_a_layer_keeps_what_is_linear_in_its_tokens() -> None:
    assert layer(64) == 2 * layer(32) > 0  # scores of time x time would make it more


def test_a_checkpointed_layer_keeps_its_input() -> None:
    assert layer(32, checkpointed=True) == 2 * 32 * 32 * 4  # rows x tokens x width x bytes


def test_nothing_is_kept_below_what_trains() -> None:
    sizes = {}
    for depth in (2, 4):
        for place in ("bottom", "top"):
            backbone = tiny_backbone(num_hidden_layers=depth)
            BlockExpansion(groups=1, position=place).setup(backbone)  # type: ignore[arg-type]
            sizes[depth, place] = kept_activations(backbone, batch(backbone, 2, 32))
    assert sizes[2, "top"] == sizes[4, "top"]
    assert sizes[4, "bottom"] > sizes[2, "bottom"] > sizes[2, "top"]


def test_the_head_counts_at_labelled_positions_alone() -> None:
    backbone = tiny_backbone()
    few, many = (kept_activations(backbone, batch(backbone, 2, 64, labelled)) for labelled in (4, 24))
    width, vocabulary = backbone.model.config.hidden_size, backbone.model.config.vocab_size
    tokens = 2 * (24 - 4)
    # the probabilities, two more of their size on the way back, the state that the head reads, and a few numbers
    assert many - few == pytest.approx(tokens * (3 * vocabulary + width) * 4, rel=0.02)


def test_what_was_counted_is_let_go() -> None:
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    backbone = tiny_backbone()
    kept_activations(backbone, batch(backbone, 2, 32))
    before = tensors()
    kept_activations(backbone, batch(backbone, 2, 32))
    assert tensors() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts")
@pytest.mark.slow
def test_a_process_takes_what_was_estimated() -> None:
    """Blocks that are freed go back at once here; else the C library holds on to a third more."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", MEASURE]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=300)
    found = [line.split()[1:] for line in ran.stdout.splitlines() if line.startswith("found")]
    assert len(found) == 3
    for name, measured, estimated in found:
        ratio = int(estimated) / int(measured)
        sizes = f"estimated {int(estimated) / 1e6:.0f} MB, measured {int(measured) / 1e6:.0f} MB"
        print(f"{name}: {sizes}, ratio {ratio:.2f}")
        assert abs(ratio - 1) < TOLERANCE


def test_a_devices_share() -> None:
    whole = Memory(800, 400, 801, 50)
    assert whole.over(1, sharded=True) == whole
    assert whole.over(2, sharded=True) == Memory(800, 200, 401, 50)
    assert whole.over(2, sharded=False) == Memory(800, 800, 801, 50)


def test_the_plan_says_it_and_warns(tmp_path: Path, model_folder: Path, task_folder: Path) -> None:
    small = Study(parse(study(model_folder, task_folder, tmp_path / "runs")))
    plan = small.plan()
    found = plan.estimates["seqft"].memory
    assert found is not None
    parameters = sum(value.nbytes for value in small.assembly.backbone.parameters())
    assert found.gradients == parameters
    assert f"; memory about {found}" in str(plan)
    assert "more than" not in str(plan)
    short = StrategyEstimate("all", 1, 1.0, 1.0, Memory(2 * 10**9, 10**9, 0, 5 * 10**8), free=3 * 10**9)
    assert short.remarks.startswith(
        "; memory about 3.5 GB: weights 2.0, gradients 1.0, optimizer 0.0, activations 0.5. That is more than the 3.0 "
        "GB that "
    )


def test_free_memory_is_what_linux_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    assert free_memory(torch.device("cpu")) is None
    memory.MEMORY.write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n", encoding="ascii")
    assert free_memory(torch.device("cpu")) == 1_024_000
