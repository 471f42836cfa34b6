"""Sharded training: its units and settings, and two processes compared with one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sharded import CASES, learn
from helpers.studies import ROOT, sgd, trainer
from lightning.pytorch.plugins import HalfPrecision, Precision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from strategies import BlockExpansion
from workbench.backbone.loading import blocks, checkpoint_blocks
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualModule, Sharded
from workbench.train.fsdp import POLICIES, free_weights, gather, resolve_strategy, sharded

TOLERANCE = 1e-5
ALONE = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    before = {name: os.environ.get(name) for name in ALONE}
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})


def grown(checkpointed: bool = False) -> Any:
    """A tiny model of four layers and two inserted ones, of which only the inserted ones train."""
    backbone = tiny_backbone()
    if checkpointed:
        checkpoint_blocks(backbone.model)
    BlockExpansion(groups=2).setup(backbone)
    return backbone


def test_each_block_is_a_unit_including_inserted_ones(alone: DeviceMesh) -> None:
    backbone = grown()
    before = {name: value.detach().clone() for name, value in backbone.named_parameters()}
    layers = list(backbone.decoder.layers)
    assert blocks(backbone) == layers
    assert len(layers) == 6
    copied = sharded(backbone, alone, POLICIES["32-true"])
    units = [name for name, module in copied.named_modules() if isinstance(module, FSDPModule)]
    assert units == ["", *(f"model.model.layers.{index}" for index in range(6))]
    assert all(isinstance(value, DTensor) for value in copied.parameters())
    assert list(copied.trainable()) == list(backbone.trainable())
    assert {name.split(".")[2] for name in copied.trainable()} == {"2", "5"}
    assert sum(value.numel() for value in backbone.parameters()) == 0  # no weight is held twice
    gather(backbone, copied)
    assert list(backbone.decoder.layers) == layers
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_parameters())
    free_weights(backbone)
    assert all(value.numel() == 0 for value in backbone.parameters())


@pytest.mark.parametrize(("precision", "computed"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_blocks_compute_in_the_precision_and_gradients_are_whole(
    alone: DeviceMesh, precision: str, computed: torch.dtype
) -> None:
    copied = sharded(grown(), alone, POLICIES[precision])
    seen = set()
    copied.decoder.layers[5].mlp.register_forward_pre_hook(
        lambda module, given: seen.update({given[0].dtype, module.up_proj.weight.dtype})
    )
    rows = copied.encode(tiny_tasks()[0].train, 3).to_list()
    copied(copied.collate(rows[:4])).loss.backward()
    assert seen == {computed}
    assert {value.dtype for value in copied.parameters()} == {torch.float32}
    assert {value.grad.dtype for value in copied.trainable().values() if value.grad is not None} == {torch.float32}


@pytest.mark.parametrize(("checkpointed", "times"), [(False, 1), (True, 2)])
def test_checkpointed_blocks_are_recomputed_including_inserted_ones(
    alone: DeviceMesh, checkpointed: bool, times: int
) -> None:
    copied = sharded(grown(checkpointed), alone, POLICIES["32-true"])
    ran = [0] * 6
    for index, layer in enumerate(copied.decoder.layers):

        def count(*_: Any, index: int = index) -> None:
            ran[index] += 1

        layer.mlp.register_forward_pre_hook(count)
    rows = copied.encode(tiny_tasks()[0].train, 3).to_list()
    copied(copied.collate(rows[:4])).loss.backward()
    assert ran == [1, 1, *[times] * 4]  # below the lowest layer that trains there is no gradient


def test_unsupported_strategies_and_precisions_are_refused() -> None:
    strategy = Sharded()
    with pytest.raises(ValueError, match=r"precision='16-true' is not sharded here\. Choose one of 32-true, 64-true"):
        strategy.precision_plugin = HalfPrecision("16-true")
    strategy.precision_plugin = Precision()
    assert isinstance(resolve_strategy("fsdp"), Sharded)
    assert resolve_strategy("ddp") == "ddp"
    assert resolve_strategy(strategy) is strategy
    for other in ("fsdp_cpu_offload", FSDPStrategy(), ModelParallelStrategy()):
        with pytest.raises(ValueError, match="wraps the model for good"):
            resolve_strategy(other)


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_one_device_learns_as_without_sharding(
    accelerator: str, alone: DeviceMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if accelerator == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or Lightning gives the processes that it starts other ones
    learnt = []
    for strategy in ("auto", Sharded()):
        module = ContinualModule(grown(), BlockExpansion(groups=2), sgd)
        rows = module.backbone.encode(tiny_tasks()[0].train, 3).to_list()
        batches = DataLoader([module.backbone.collate(rows[:4])] * 3, batch_size=None)
        fitted = trainer(tmp_path, [], strategy=strategy, accelerator=accelerator, devices=1)
        fitted.fit(module, batches)
        learnt.append(torch.cat([value.detach().cpu().flatten() for value in module.backbone.parameters()]))
    assert torch.equal(*learnt) if accelerator == "cpu" else torch.allclose(*learnt, atol=TOLERANCE)
    assert not torch.equal(learnt[0], torch.cat([value.detach().flatten() for value in grown().parameters()]))


def test_a_failed_training_restores_the_backbone(alone: DeviceMesh, tmp_path: Path) -> None:
    module = ContinualModule(grown(), BlockExpansion(groups=2), sgd)
    backbone, context = module.backbone, module.scoring_context
    with pytest.raises(AttributeError):
        trainer(tmp_path, [], strategy=Sharded(), devices=1).fit(module, DataLoader([None], batch_size=None))
    assert module.backbone is backbone
    assert module.scoring_context is context


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """Results of one process, and of two sharded ones, over two tasks with growth between them."""
    folder = tmp_path_factory.mktemp("sharded")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "sharded.py")]
    started = [
        subprocess.Popen(
            [*command, str(rank), "2", port, str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        one = {case: learn(case, 0, 1, folder) for case in CASES}
        for process in started:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return one, [torch.load(folder / f"found-{rank}.pt") for rank in range(2)], folder


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two states' tensors."""
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_over_two_tasks(case: str, found: Any) -> None:
    one, both, _ = found
    for other in both:
        assert distance(one[case]["whole weights"], other[case]["whole weights"]) < CASES[case][3]
        assert other[case]["whole same"]
        for item in ("whole 0", "whole 1"):
            mine, theirs = one[case][item], other[case][item]
            assert theirs["plain"]
            assert torch.allclose(mine["within"], theirs["within"], atol=1e-3)
            assert theirs["answers"] == mine["answers"][: len(theirs["answers"])]
    assert [len(other[case]["whole 1"]["answers"]) for other in both] == [3, 1]


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_state_is_saved_whole_and_resumed(case: str, found: Any) -> None:
    one, both, folder = found
    for index in range(2):
        mine, theirs = (torch.load(folder / f"{case}-{world}-{index}.ckpt", weights_only=True) for world in (1, 2))
        assert distance(mine["state_dict"], theirs["state_dict"]) < CASES[case][3]
        moments = [state["optimizer_states"][0]["state"] for state in (mine, theirs)]
        assert moments[0].keys() == moments[1].keys()
        assert max(distance(moments[0][key], moments[1][key]) for key in moments[0]) < CASES[case][3]
    for other in both:
        assert distance(one[case]["resumed weights"], other[case]["resumed weights"]) < CASES[case][3]
