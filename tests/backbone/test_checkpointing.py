"""Blocks that keep their input alone: the same numbers, from less memory, in whatever a method makes of the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from strategies import CALM, BlockExpansion, DepthUpScaling, LoRA, SeqFT
from workbench.backbone import Backbone
from workbench.backbone.loading import blocks, checkpoint_blocks
from workbench.runtime.seeding import seed_all
from workbench.strategy import ContinualStrategy
from workbench.study import Study
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train.activation_cache import FrozenStates, constant_parts

METHODS: dict[str, Callable[[], ContinualStrategy]] = {
    "seqft": SeqFT,
    "lora": partial(LoRA, dropout=0.3),
    "block_expansion": partial(BlockExpansion, groups=2),
    "depth_up_scaling": partial(DepthUpScaling, dropped=1),
    "calm": lambda: CALM(tiny_backbone(seed=3), connections=2),
}


def stepped(method: str, checkpointed: bool) -> tuple[Backbone, list[float], int]:
    """A tiny model after three steps of a method, their losses, and the bytes that a forward kept."""
    seed_all(0)
    backbone = tiny_backbone()
    if checkpointed:
        checkpoint_blocks(backbone.model)
    METHODS[method]().setup(backbone)
    rows = backbone.encode(tiny_tasks()[0].train, 3).to_list()
    batch, kept, losses = backbone.collate(rows[:4]), {}, []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    optimizer = torch.optim.SGD(backbone.trainable().values(), lr=0.1)
    for _ in range(3):
        kept.clear()
        optimizer.zero_grad()
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = backbone(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return backbone, losses, sum(kept.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_from_less_memory(method: str) -> None:
    plain, losses, kept = stepped(method, checkpointed=False)
    checkpointed, again, less = stepped(method, checkpointed=True)
    assert losses == again
    assert losses[0] != losses[-1]
    assert less == kept if method == "calm" else less < kept / 2  # a composition's models run in evaluation mode
    for (name, value), other in zip(plain.model.named_parameters(), checkpointed.model.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_states_of_frozen_layers_stand_in_all_the_same() -> None:
    losses = []
    for checkpointed in (False, True):
        backbone = tiny_backbone()
        if checkpointed:
            checkpoint_blocks(backbone.model)
        BlockExpansion(groups=2).setup(backbone)
        batch = backbone.collate(backbone.encode(tiny_tasks()[0].train, 3).to_list()[:4])
        states = FrozenStates(backbone, constant_parts(backbone), [batch])
        with states.standing_in(batch):
            output = backbone(batch)
        output.loss.backward()
        gradients = torch.cat(
            [value.grad.flatten() for value in backbone.trainable().values() if value.grad is not None]
        )
        losses.append((float(output.loss.detach()), gradients))
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])
    assert bool(losses[0][1].any())


def test_the_model_is_so_again_when_it_is_restored(model_folder: Path) -> None:
    backbone = Backbone.load(model_folder, activation_checkpointing=True)
    assert all(block.gradient_checkpointing for block in blocks(backbone))
    backbone.restore()
    assert all(block.gradient_checkpointing for block in blocks(backbone))
    assert not any(block.gradient_checkpointing for block in blocks(Backbone.load(model_folder)))


def test_a_study_ends_with_the_same_scores(make: Callable[..., Study], model_folder: Path) -> None:
    files = []
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        study = make(name=name, backbone={"path": str(model_folder), "activation_checkpointing": checkpointed})
        study.run()
        files.append([path.read_bytes() for path in sorted(study.folder.glob("*/*/*/*.csv")) if path.stem != "costs"])
    assert files[0] == files[1]
    assert files[0]
